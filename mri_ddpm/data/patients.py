"""Whose scan a file is: by a table, a pattern, or names that are known.

The first source that answers counts: the table, `--patient_pattern`, the tags of DICOM files, the names of known data
sets, folders that are named like patients.
"""

import re
from collections.abc import Collection, Hashable
from pathlib import PurePosixPath

import regex

from mri_ddpm.errors import InputError

# A part of a path that names a patient as a known data set does; the group is the patient, without visit, contrast and slice
KNOWN = {
    "BIDS": r"^(sub-[A-Za-z0-9]+)(?![A-Za-z0-9-])",
    "BraTS": r"(BraTS-[A-Z]+-\d+|BraTS\d\d_(?:Training|Validation|Testing)_\d+|Brats\d\d_\w+?_\d+)(?!\d)",
    "IXI": r"(IXI\d{3})(?!\d)",
    "OASIS": r"(OAS[12]_\d{4}|OAS3\d{4})(?!\d)",
    "ADNI": r"(?<!\d)(\d{3}_S_\d{4})(?!\d)",
    "TCGA": r"(TCGA[-_][A-Z0-9]{2}[-_][A-Z0-9]{4})(?![A-Za-z0-9])",
    "UPENN-GBM": r"(UPENN-GBM-\d{5})(?!\d)",
    "UCSF-PDGM": r"(UCSF-PDGM-\d{3,4})(?!\d)",
}
_NAMED = re.compile(r"(patient|pat|pt|case|subject|subj|sub|id)[ _-]?\d+.*", re.IGNORECASE)
MATCH_SECONDS = 0.5  # a name; a pattern may come with somebody's model, and some patterns never end


def named_like_patients(names: Collection[str]) -> bool:
    """Whether all are like `case 7` or of a known data set, or each has a number of its own of three digits or more."""
    if not names:
        return False
    if all(_NAMED.fullmatch(name) for name in names) or known_name(names):
        return True
    if all(re.fullmatch(r"(19|20)\d\d", name) for name in names):
        return False  # years
    numbers = {tuple(re.findall(r"\d+", name)) for name in names}
    return len(numbers) == len(names) and all(re.search(r"\d{3}", name) for name in names)


def known_name(paths: Collection[str]) -> str | None:
    """The known data set by whose rule every one of the paths names a patient; None where there is none."""
    return next((name for name in KNOWN if paths and all(_of_known(name, path) for path in paths)), None)


def patients_by_name(paths: Collection[str]) -> tuple[dict[str, str], str] | None:
    """{path: patient} and whose names they are, for paths of a known data set; None for others."""
    name = known_name(paths)
    return ({path: _of_known(name, path) for path in paths}, f"{name} names") if name else None


def patients_by_pattern(paths: Collection[str], pattern: str) -> dict[str, str]:
    """{path: patient}: what the first group of a regular expression matches, or else the whole of it.

    Raises `InputError` where it is no regular expression, takes too long, or does not match a path.
    """
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise InputError(
            f"--patient_pattern {pattern} is no regular expression ({error}); mend it."
        ) from None
    patients = {}
    for path in paths:
        try:
            found = compiled.search(path, timeout=MATCH_SECONDS)
        except TimeoutError:
            raise InputError(
                f"--patient_pattern {pattern} takes too long for one name; write it without repeats in repeats."
            ) from None
        patient = found and (found[1] if compiled.groups else found[0])
        if not patient:
            raise InputError(
                f"--patient_pattern {pattern} finds no patient in {path}; write it so that it matches every path, or move the others away."
            )
        patients[path] = patient
    return patients


def _of_known(name: str, path: str) -> str | None:
    """The patient that a path names by the rule of a known data set: by its folders first, then by its own name."""
    found = (re.search(f"(?<![A-Za-z0-9]){KNOWN[name]}", part) for part in PurePosixPath(path).parts)
    return next((match[1] for match in found if match), None)


def folder_of_patients(folders: dict[Hashable, tuple[str, ...]]) -> int | None:
    """The outermost depth at which every file lies in a folder named like a patient; None where there is none.

    folders: {file: the folders it lies in, without that of its part}.
    """
    for depth in range(min(map(len, folders.values()), default=0)):
        if named_like_patients({names[depth] for names in folders.values()}):
            return depth
    return None
