"""Which contrasts of a source are taken: the one that is asked for, or several of each head together, and its mask.

A head is one person at one visit: files in one folder, or called alike but for the contrast.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from mri_ddpm.errors import InputError
from mri_ddpm.scan_options import ScanOptions

from .channels import Channels
from .contents import Content
from .layout import Finding, ScanFile
from .masks import is_mask_name, stem_of, words_of
from .reading.contrasts import contrast_of_name, without_contrast
from .volume_files import VolumeFile

# What was found of each name: the file (of a mask none), what it holds, and its path
Planes = dict[str, list[tuple[ScanFile | None, Content | VolumeFile, str]]]


def choose(
    files: tuple[ScanFile, ...], options: ScanOptions, name: str
) -> tuple[tuple[ScanFile, ...], tuple[Finding, ...]]:
    """The files of the contrast, or the sets of the channels and conditions, that are asked for; and what to say of it.

    Raises `InputError` where several contrasts are there and none is asked for, and where what is asked for is not there.
    """
    if options.channels or len(Channels.of(options).planes) > 1:
        return _aligned(files, options, name)
    return choose_contrast(files, options.contrast, name)


def choose_contrast(
    files: tuple[ScanFile, ...], contrast: str | None, name: str
) -> tuple[tuple[ScanFile, ...], tuple[Finding, ...]]:
    """Those of the contrast that is asked for, or all if there is one alone; and what to say of it.

    Raises `InputError` where several are there and none is asked for, and where the one that is asked for is not there.
    """
    of_file = {file.path: getattr(file.content, "channels", ()) or (file.contrast,) for file in files}
    unread = {file.path for file in files if file.flaw and not file.contrast}  # may be of any
    counts = Counter(found for path, names in of_file.items() if path not in unread for found in names)
    words = ", ".join(f"{counts[c]} {c or 'of unknown contrast'}" for c in sorted(counts, key=str))
    if contrast is None:
        if len(counts) > 1:
            first = next((path for path in of_file if path not in unread and None in of_file[path]), None)
            unknown = (
                f", or give {first} and the like one in the column contrast of metadata.csv" if first else ""
            )
            raise InputError(
                f"{name} holds {words}: choose by --contrast, or several by --channels{unknown}."
            )
        return files, (Finding(f"contrast: {words}"),) if any(counts) else ()
    if contrast not in counts:
        raise InputError(f"--contrast {contrast} is not in {name}, which holds {words}.")
    chosen = []
    for file in files:
        if file.path in unread:
            chosen.append(file)
        elif contrast in of_file[file.path]:
            content = (
                replace(file.content, contrast=contrast)
                if isinstance(file.content, VolumeFile)
                else file.content
            )
            chosen.append(replace(file, content=content, contrast=contrast))
    return tuple(chosen), (Finding(f"contrast: {contrast} chosen, of {words}"),)


def leader_of(planes: Iterable[str]) -> str:
    """The first that is no mask: by it slices, patients and copies are told. Raises `InputError` where all are masks."""
    for name in planes:
        if not is_mask_name(name):
            return name
    raise InputError(
        "--channels names masks alone, and slices are chosen by a contrast: name one beside them, or by --condition_on."
    )


def _aligned(
    files: tuple[ScanFile, ...], options: ScanOptions, name: str
) -> tuple[tuple[ScanFile, ...], tuple[Finding, ...]]:
    """A file for each head of which all is there, and how many are left out for what they lack."""
    planes = Channels.of(options).planes
    leader = leader_of(planes)
    _refuse_one_mask_twice(planes)
    contrasts = {file.path: _contrasts(file, planes) for file in files}
    counts = Counter(found for names in contrasts.values() for found in names)
    masks = len({id(file.mask) for file in files if file.mask})
    words = ", ".join(f"{counts[c]} {c or 'of unknown contrast'}" for c in sorted(counts, key=str))
    words = f"{words} and {masks} mask{'s' * (masks != 1)}"
    wanted = {plane: plane for plane in planes}
    if "" in wanted:
        wanted[""] = _unnamed(counts, options, f"{name} holds {words}")
    for plane, contrast in wanted.items():
        if not (masks if is_mask_name(plane) else counts[contrast]):
            flag = "contrast" if plane == "" else "channels" if plane in options.channels else "condition_on"
            unknown = next((path for path, names in contrasts.items() if None in names), None)
            way_out = f": give {unknown} and the like theirs in the column contrast of metadata.csv"
            raise InputError(
                f"--{flag} {contrast} is not in {name}, which holds {words}{way_out if unknown and not is_mask_name(plane) else ''}."
            )
    sets, left_out, heads = [], Counter(), 0
    unread = [file for file in files if file.flaw and not {*contrasts[file.path]} & {*wanted.values()}]
    for found in _heads(files, contrasts, wanted):
        heads += 1
        if lacks := _lacks(found):
            left_out[lacks] += 1
            continue
        head = {plane: only for plane, (only,) in found.items()}
        file, content, _ = head[leader]
        members = [member for member, *_ in head.values() if member]
        flaw = next((member.flaw for member in members if member.flaw), None)
        mask = next((member.mask for member in members if member.mask), None)
        file = replace(file, content=content, contrast=wanted[leader], flaw=flaw, mask=mask)
        if len(head) > 1:
            there = {plane: content for plane, (_, content, _) in head.items()}
            paths = {plane: path for plane, (*_, path) in head.items()}
            file = replace(file, planes=there, paths=paths)
        sets.append(file)
    reasons = ", ".join(f"{count} {lacks}" for lacks, count in left_out.items())
    asked = ", ".join(plane or wanted[""] or "the image" for plane in planes)
    if not sets:
        raise InputError(f"{name} holds no head with all of {asked}, but {words}; left out: {reasons}.")
    findings = [Finding(f"channels and conditions: {asked} of {len(sets)} heads, of {words}")]
    if left_out:
        count = heads - len(sets)
        findings.append(Finding(f"left out: {count} head{'s' * (count > 1)}, {reasons}"))
    return (*sets, *unread), tuple(findings)


def _refuse_one_mask_twice(planes: Iterable[str]) -> None:
    """Raise an `InputError` for two names of masks, as `seg` and `mask`: files have one mask a head, which would be both."""
    masks = [name for name in planes if is_mask_name(name)]
    if len(masks) > 1:
        raise InputError(
            f"--channels and --condition_on name the masks {' and '.join(masks)}, and in files a head has one mask; name one."
        )


def _unnamed(counts: Counter, options: ScanOptions, holds: str) -> str | None:
    """The contrast that is drawn where none is named: the one that is asked for, or else the only one that is not given."""
    if options.contrast:
        return options.contrast
    others = counts.keys() - {*options.condition_on}
    if len(others) != 1:
        raise InputError(f"{holds}: name what is drawn by --contrast, or by --channels.")
    return others.pop()


def _contrasts(file: ScanFile, asked: Iterable[str]) -> tuple[str | None, ...]:
    """The contrasts of a file, which its name or a folder may say; what the name of a picture says counts if it is asked for."""
    if known := getattr(file.content, "channels", ()) or (file.contrast and (file.contrast,)):
        return known
    path = PurePosixPath(file.path)
    named = (contrast_of_name(part) for part in reversed(path.parts))
    last = words_of(stem_of(path))[-1:]  # as of a contrast that nobody else asks for
    return (next((contrast for contrast in (*named, *last) if contrast in asked), None),)


def _heads(
    files: Iterable[ScanFile], contrasts: dict[str, tuple], wanted: dict[str, str | None]
) -> Iterator[Planes]:
    """What there is of each head that has a contrast that is asked for.

    Files called alike are of one head. Where these lack something, all of a patient in a folder are.
    """
    alike: dict[tuple, list[ScanFile]] = defaultdict(list)
    for file in files:
        alike[_place(file, contrasts[file.path])].append(file)
    visits: dict[tuple, list[list[ScanFile]]] = defaultdict(list)
    for (*folder, stem), group in alike.items():
        patients = {file.patient for file in group}
        is_one = len(patients) == 1 and isinstance(group[0].content, VolumeFile)
        visits[(*folder, *patients) if is_one else (*folder, stem, None)].append(group)
    for groups in visits.values():
        found = [_planes(group, contrasts, wanted) for group in groups]
        if all(map(_lacks, found)):
            found = [_planes(sum(groups, []), contrasts, wanted)]
        for planes in found:
            if any(there for plane, there in planes.items() if not is_mask_name(plane)):
                yield planes


def _place(file: ScanFile, contrasts: tuple[str | None, ...]) -> tuple[str, ...]:
    """Part, folder and name of a file less what they say of the contrast; of a DICOM series its patient and study."""
    path = PurePosixPath(file.path)
    folders = [
        without_contrast(part) for part in path.parts[:-1] if part != "anat"
    ]  # beside which BIDS has dwi
    folder = "/".join(filter(None, folders))
    series = getattr(file.content, "series", None)
    if series:
        return file.part, series.study or folder, file.patient or "", ""
    stem = stem_of(path)
    if not contrast_of_name(stem):
        if file.contrast:
            stem = re.sub(r"_\d{4}$", "", stem)  # as nnU-Net has it
        for contrast in filter(None, contrasts):
            stem = re.sub(rf"[^A-Za-z0-9]+{re.escape(contrast)}$", "", stem, flags=re.IGNORECASE)
    return file.part, folder, without_contrast(stem)


def _planes(group: list[ScanFile], contrasts: dict[str, tuple], wanted: dict[str, str | None]) -> Planes:
    """All that a group of files has of each name."""
    masks = {id(file.mask): (None, file.mask, file.mask_path) for file in group if file.mask}
    found: Planes = {}
    for plane, contrast in wanted.items():
        if is_mask_name(plane):
            found[plane] = list(masks.values())
            continue
        having = [file for file in group if contrast in contrasts[file.path]]
        found[plane] = [(file, _content(file, contrast), file.path) for file in having]
    return found


def _content(file: ScanFile, contrast: str | None) -> Content | VolumeFile:
    """What a file holds; of a file of several volumes the one of a contrast."""
    return replace(file.content, contrast=contrast) if isinstance(file.content, VolumeFile) else file.content


def _lacks(planes: Planes) -> str:
    """Why a head cannot be used, in words; "" for one that has each once."""
    missing = [name or "an image" for name, there in planes.items() if not there]
    several = [name or "image" for name, there in planes.items() if len(there) > 1]
    if missing:
        return f"without {' and '.join(missing)}"
    return f"with several of {' and '.join(several)}" if several else ""
