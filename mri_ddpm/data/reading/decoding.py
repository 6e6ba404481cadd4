"""The pixels of DICOM files as grey values, rescaled; what is compressed is decoded in a process that may crash."""

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mri_ddpm.errors import with_extra

from ..intensity import Samples
from . import decoder_program
from .dicom import DicomHeader, is_dicom, read_header
from .dicom_tags import in_words, numbers, open_dataset, pydicom_quiet, values_of_frame
from .pictures import BadImageError, PassingError, luma, only_picture, read_samples

PLAIN = (
    "",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
)  # syntaxes without compression
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
NO_MEMORY = re.compile("MemoryError|[Aa]llocat|bad_alloc")  # in what decoders say
SECONDS = 60.0  # for a file to be decoded, and
BYTES_PER_SECOND = 1e6  # for large ones
# What the numbers in pixels mean, and what is to be shown of them
MEANING = (
    "PhotometricInterpretation", "BitsStored", "BitsAllocated", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


class Decoder:
    """Decodes files in a process of its own, which starts with the first one, and anew after a crash. Ends with `with`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def decode(self, content: bytes, header: DicomHeader) -> np.ndarray:
        """The stored pixels, as `decoder_program.stored_pixels`.

        Raises `BadImageError` that names the compression, or `PassingError` where the decoder is missing, crashed or took too long.
        """
        if not self._process:
            self._process = subprocess.Popen(
                [sys.executable, decoder_program.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        seconds = SECONDS + header.decoded_bytes / BYTES_PER_SECOND
        process, began = self._process, time.monotonic()
        killer = threading.Timer(seconds, process.kill)
        killer.start()
        try:
            decoder_program.send(process.stdin, content)
            answer = decoder_program.receive(process.stdout)
        except OSError:  # it ended while it was sent the file
            answer = None
        except BaseException:  # Ctrl-C; or the answer would be taken for that to the next file
            self.close()
            raise
        finally:
            killer.cancel()
        if not answer:
            self.close()
            slow = time.monotonic() - began >= seconds
            ended = f"took more than {seconds:.0f} seconds" if slow else "crashed"
            raise PassingError(f"{_compressed(header)}, and its decoder {ended}: save it uncompressed")
        if answer[:1] == b"-":
            raise _undecoded(header, answer[1:].decode("utf-8", "replace"))
        return np.load(io.BytesIO(answer[1:]), allow_pickle=False)


def _compressed(header: DicomHeader) -> str:
    from pydicom.uid import UID

    return f"is compressed as {UID(header.transfer_syntax).name}"


def _undecoded(header: DicomHeader, reason: str) -> BadImageError:
    what = _compressed(header)
    if header.transfer_syntax == JPEG_EXTENDED and "12-bit" in reason:
        return PassingError(
            f"{what} with 12 bits, which only pylibjpeg-libjpeg reads: pip install it (licence GPL-3)"
        )
    if "plugins are missing dependencies" in reason or "missing required dependencies" in reason:
        return PassingError(f"{what}, whose decoder is missing: {with_extra('volumes')} brings it")
    kind = PassingError if NO_MEMORY.search(reason) else BadImageError
    return kind(f"{what}, which cannot be decoded ({in_words(reason)})")


@dataclass(frozen=True)
class Picture:
    """One picture of a DICOM file, its values rescaled to what they measure."""

    values: np.ndarray  # (H, W), or colours (H, W, 3) from 0 to `white`
    white: int  # the highest value that could be stored
    window: tuple[float, float] | None  # what the file wants shown as black and as white
    white_is_zero: bool


class Pictures:
    """The pictures of a DICOM file by number; a mosaic's tiles are pictures. `header` is what the file says of itself.

    Raises `BadImageError` for a file that is damaged or claims more pixels than are read.
    """

    def __init__(self, content: bytes, decoder: Decoder):
        self.header = header = read_header(content)
        if header.left_out:
            raise BadImageError(f"is DICOM, but no scan ({header.left_out})")
        plain = header.transfer_syntax in PLAIN
        with pydicom_quiet():
            self._meaning = open_dataset(content, MEANING)
            pixels = decoder_program.stored_pixels(content) if plain else decoder.decode(content, header)
        rows, columns, tiles = *header.size, header.tiles
        if pixels.shape[1:3] != (rows * tiles, columns * tiles) or len(pixels) != header.frames:
            raise BadImageError(f"holds other pixels than its header claims {pixels.shape}")
        if tiles > 1:  # (1, tiles * rows, tiles * columns) to (tiles * tiles, rows, columns)
            pixels = pixels.reshape(tiles, rows, tiles, columns).swapaxes(1, 2).reshape(-1, rows, columns)
            pixels = pixels[: len(header.slices) or None]  # blank tiles fill the last row
        self._pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, number: int) -> Picture:
        if not 0 <= number < len(self):
            raise IndexError(number)
        meaning, stored = self._meaning, self._pixels[number]
        with pydicom_quiet() as pydicom:
            get = values_of_frame(meaning, 0 if self.header.tiles > 1 else number)
            bits = int(get("BitsStored") or 8 * stored.itemsize)
            photometric = str(get("PhotometricInterpretation") or "MONOCHROME2")
            if photometric == "PALETTE COLOR":
                colours = pydicom.pixels.apply_color_lut(stored, meaning)
                return Picture(colours[..., :3], np.iinfo(colours.dtype).max, None, False)
            if stored.ndim == 3:
                return Picture(stored, 2**bits - 1, None, False)
            values = _rescaled(stored, meaning, get)
            return Picture(values, 2**bits - 1, _window(get), photometric == "MONOCHROME1")


def _rescaled(stored: np.ndarray, meaning, get: Callable) -> np.ndarray:
    """Stored values (H, W) by the table of a file, or by slope and intercept."""
    if meaning.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        return apply_modality_lut(stored, meaning)
    slope, intercept = get("RescaleSlope"), get("RescaleIntercept")
    slope, intercept = float(1 if slope is None else slope), float(intercept or 0)
    if not (np.isfinite([slope, intercept]).all() and slope):
        raise BadImageError(f"rescales its values by {slope:g}, which is damaged")
    return stored if (slope, intercept) == (1, 0) else stored * np.float64(slope) + intercept


def _window(get: Callable) -> tuple[float, float] | None:
    """The values to be shown as black and as white, of the first window or the table; DICOM part 3, C.11.2.1."""
    centre, width = (numbers(get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre and width:
        centre, width = centre[0], width[0]
        if (get("VOILUTFunction") or "LINEAR") == "LINEAR":
            centre, width = centre - 0.5, width - 1
    elif table := get("VOILUTSequence"):
        count, first, _ = table[0].LUTDescriptor
        centre, width = first + ((count or 2**16) - 1) / 2, (count or 2**16) - 1
    else:
        return None
    return (centre - width / 2, centre + width / 2) if width > 0 else None


def read_frames(content: bytes, decoder: Decoder) -> list[Samples]:
    """The pictures of a file as plain grey images, as the file wants them shown; a place, if they have one, is ignored.

    - Colours become luma, as in `pictures.read_samples`.
    - A window makes values from 0 to 1. Without one, up to 8 bits have a known white, and others are of a kind.

    Raises `BadImageError`.
    """
    return [_samples(picture) for picture in Pictures(content, decoder)]


def read_picture(content: bytes) -> Samples:
    """The one picture of a file, DICOM or of any kind that `pictures.read_samples` takes; raises as that does."""
    if not is_dicom(content):
        return read_samples(content)
    with Decoder() as decoder:
        return only_picture(read_frames(content, decoder))


def _samples(picture: Picture) -> Samples:
    values, window, inverted = picture.values, picture.window, picture.white_is_zero
    if not np.isfinite(values).all():
        raise BadImageError("holds values that are not finite numbers")
    if values.ndim == 3:
        return Samples(luma(np.float32(values / picture.white)))
    whole = values.dtype.kind in "iu" or not np.mod(values, 1).any()
    if not window and whole and picture.white <= 255 and 0 <= values.min() <= values.max() <= picture.white:
        window = (0, picture.white)
    if window:
        unit = ((values - np.float64(window[0])) / (window[1] - window[0])).clip(0, 1)
        return Samples(np.float32(1 - unit if inverted else unit))
    return Samples(values, "integer" if whole else "float", inverted)
