"""The contrast of a scan, by the names that BIDS, BraTS, IXI, Decathlon, nnU-Net and scanners give it."""

import re
from collections.abc import Mapping

CONTRASTS = ("t1", "t1ce", "t2", "flair", "pd", "dwi")

_BIDS = {"T1w": "t1", "UNIT1": "t1", "T2w": "t2", "FLAIR": "flair", "PDw": "pd", "dwi": "dwi"}
_BIDS |= {"inplaneT1": "t1", "inplaneT2": "t2"}
_SEQUENCE = "(?:w|wi|tse|fse|se|tfe|ffe|tfl|fl|ir|3d|2d|spc|space)*"  # what is written in one with T1 and T2
# Whole words of a name in lower case, of which blanks alone separate words
_OTHERS = re.compile(  # weighted otherwise, quantitative, or derived
    r"\b(?:adc|fa|colfa|md|swi|swan|mra|tof|bold|asl|perf\w*|dsc|dce|mt|ratio|sub\w*tract\w*|\w*map|t1rho"
    r"|t2 ?star\w*|localizer|scout|survey)\b"
)
_FLAIR = re.compile(r"\b(?:(?:t2|3d|2d)?flair(?:3d|2d)?|t2f|dark ?fluid|tirm)\b")
_DWI = re.compile(r"\b(?:dwi|dti|diff|diffusion|trace\w?|ep2d diff\w*)\b")
_T1CE = re.compile(r"\b(?:3d|2d)?t1w?(?:ce|c|gd|cgd|post|km)\b")
_T1 = re.compile(rf"\b(?:(?:3d|2d)?t1{_SEQUENCE}|t1n|mp ?rage|\w*bravo|\w*spgr|mpr(?= n?\d))\b")
_T2 = re.compile(rf"\b(?:3d|2d)?t2{_SEQUENCE}\b")
_PD = re.compile(rf"\b(?:pd{_SEQUENCE}|proton ?density)\b")
_ENHANCED = re.compile(
    r"(?<![a-z])(?:ce|gd|gad|gado|gadolinium|km|\+c|c\+|\+gd|\+|contrast|enhanced|post(?! ?(?:op|proc|surg)))(?![a-z])"
)
_PLAIN = re.compile(r"\b(?:pre|without|w ?o|wo|non?|nativ|native|ohne|unenhanced|before)\b")


def contrast_of_name(name: str, channel_names: Mapping[str, str] | None = None) -> str | None:
    """What a scan's name says of its contrast: one of `CONTRASTS`, or None where it says nothing, or two things.

    Args:
        name: of a file, without folders, or a DICOM SeriesDescription.
        channel_names: of a `dataset.json`, which calls them `channel_names` or `modality`, by their numbers in decimal; for
            files of nnU-Net, whose names end in `_0000` and so on.
    """
    stem = re.sub(r"(?:\.[A-Za-z]{2,4})+$", "", name)
    if channel_names and (number := re.search(r"_(\d{4})$", stem)):
        return contrast_of_name(str(channel_names.get(str(int(number[1])), "")))
    if bids := _BIDS.get(stem.rpartition("_")[2]):
        return "t1ce" if bids == "t1" and "_ce-" in stem else bids
    words = re.sub(r"[^a-z0-9+]+", " ", stem.lower().replace("*", "star"))
    if _OTHERS.search(words):
        return None
    for contrast, pattern in (("flair", _FLAIR), ("dwi", _DWI), ("t1ce", _T1CE)):
        if pattern.search(words):
            return contrast
    found = [name for name, pattern in (("t1", _T1), ("t2", _T2), ("pd", _PD)) if pattern.search(words)]
    if found == ["t1"] and _ENHANCED.search(words) and not _PLAIN.search(words):
        return "t1ce"
    return found[0] if len(found) == 1 else None


def without_contrast(name: str) -> str:
    """A name less the words that say its contrast, the same for all contrasts of a head: `p1_T1_mprage` is `p1`."""
    head, _, last = name.rpartition("_")
    if last in _BIDS:
        return re.sub(r"_(?:acq|ce)-[A-Za-z0-9]+", "", head)
    contrast = contrast_of_name(name)
    words = re.findall(r"[A-Za-z0-9+]+", name)
    for width in range(1, len(words) + 1 if contrast else 0):
        for start in range(len(words) - width, -1, -1):
            telling, rest = words[start : start + width], [*words[:start], *words[start + width :]]
            if contrast_of_name(" ".join(telling)) == contrast and not contrast_of_name("_".join(rest)):
                return "_".join(rest)
    return "_".join(words)
