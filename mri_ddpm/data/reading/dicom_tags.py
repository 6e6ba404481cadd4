"""Reading DICOM by pydicom: some tags of a file, and none of the others; quietly, and with errors in words."""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from mri_ddpm.errors import InputError, import_extra

from .pictures import BadImageError, failed

MAX_VALUE = 4096  # bytes of one element that is a number or a text
# The whole header is squeezed, and would be unpacked before its size is known
DEFLATED = re.compile(rb"\x02\x00\x10\x00.{4}1\.2\.840\.10008\.1\.2\.1\.99", re.DOTALL)
# How pydicom says that a file ends too early
CUT_OFF = re.compile("bytes of pixel data is less than expected|has no 'Pixel Data'")


@contextmanager
def pydicom_quiet() -> Iterator[object]:
    """The library that reads DICOM, which warns of all that is odd in a file; what else goes wrong is `BadImageError`."""
    pydicom = import_extra("pydicom", "volumes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield pydicom
    except (BadImageError, InputError):
        raise
    except Exception as error:  # of damaged files, readers raise nearly anything
        raise failed(f"is DICOM that cannot be read ({in_words(error)})", error) from None


def in_words(error: object) -> str:
    """What a reader says of a damaged file, in few words."""
    words = " ".join(str(error).split()) or type(error).__name__
    return "its pixels are cut off or missing" if CUT_OFF.search(words) else words[:200]


def open_dataset(content: bytes, tags: Iterable):
    """These tags of a file, with all others left unread. Raises `BadImageError` for one that is squeezed as a whole."""
    if DEFLATED.search(content):
        raise BadImageError("is DICOM deflated as a whole, which is not read: save it uncompressed")
    import pydicom

    return pydicom.dcmread(io.BytesIO(content), force=True, specific_tags=list(tags), stop_before_pixels=True)


@cache
def tag_of(name: str):
    """The tag of a keyword."""
    from pydicom.tag import Tag

    return Tag(name)


def value_of(dataset, name: str):
    """A number or text of a data set, or several; None if there is none. Raises `BadImageError` for an endless one."""
    tag = tag_of(name)
    if tag not in dataset:
        return None
    raw = dataset.get_item(tag).value
    if isinstance(raw, bytes) and len(raw) > MAX_VALUE:
        raise BadImageError(f"is DICOM of which {name} takes {len(raw)} bytes")
    return dataset[tag].value


def values_of_frame(dataset, number: int) -> Callable[[str], object]:
    """What gives a frame's values by name: an Enhanced file has them in groups, of the frame or of all, others have one each."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    groups = [
        element.value[0]
        for holder in (*own[number : number + 1], *shared[:1])
        for element in holder
        if element.VR == "SQ" and element.value
    ]

    def get(name: str):
        return next((value_of(group, name) for group in (*groups, dataset) if tag_of(name) in group), None)

    return get


def texts(value) -> list[str]:
    """A text, or several, or None, as a list."""
    return [] if value is None else [str(part) for part in ([value] if isinstance(value, str) else value)]


def text_of(dataset, name: str) -> str:
    """A text of a data set with blanks made single; empty if there is none."""
    return " ".join(str(value_of(dataset, name) or "").split())


def numbers(value, count: int | None = None) -> tuple[float, ...]:
    """So many finite numbers, or none."""
    try:
        values = tuple(map(float, [value] if isinstance(value, (str, float, int)) else value))
    except (TypeError, ValueError):
        return ()
    return values if count in (None, len(values)) and np.isfinite(values).all() else ()
