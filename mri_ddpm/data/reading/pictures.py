"""One scan from its file's bytes to a grey float image, and from there to a square.

H, W: height and width in pixels, after the rotation that EXIF asks for.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from ..intensity import Samples, Scale, common_scale, from_samples

RUN_BY_OTHERS = ("EPS", "WMF")  # Pillow hands these programs to Ghostscript and to Windows
UNREAD = ("PDF", "MPEG", "HDF5", "GRIB", "BUFR")  # Pillow knows their names, but cannot read them
FIRST_IS_ALL = ("MPO", "PSD")  # of which other frames are views and layers of the first
FULL_16_BIT = ("PNG", "PPM", "JPEG2000")  # whose 16-bit values Pillow gives in their full range
# What undoes an orientation of TIFF and EXIF
TURNED = {
    2: np.fliplr,
    3: lambda values: np.rot90(values, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda values: np.rot90(values, -1),
    7: lambda values: np.rot90(values, 2).T,
    8: np.rot90,
}
# Where in a file of another kind something stands that no image has there, what it is, and the way out
OTHERS = (
    (0, b"\x1f\x8b", "is compressed, and no .nii.gz, which alone is read: unpack it"),
    (0, b"PAR1", "is a parquet table: give the folder it lies in by --dataset_name"),
    (0, b"ARROW1", "is an Arrow table: give the folder it lies in by --dataset_name"),
    (0, b"\xff\xff\xff\xff", "is an Arrow table: give the folder it lies in by --dataset_name"),
    (0, b"MATLAB 5", "is a MATLAB file, which is not read: save its slices as 16-bit PNG"),
    (0, b"MATLAB 7", "is a MATLAB file, which is not read: save its slices as 16-bit PNG"),
    (0, b"\x93NUMPY", "is a numpy array, which is not read: save its slices as 16-bit PNG"),
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        "is HDF5, which is not read, and fastMRI's holds k-space: save slices as 16-bit PNG",
    ),
    (0, b"NRRD", "is an NRRD volume, which is not read: save its slices as 16-bit PNG"),
)
# How tifffile and Pillow say that they were installed without a decoder
LIBRARY_MISSING = re.compile("requires the 'imagecodecs' package|decoder .* not available")
_ITU_R_601 = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # luma of R, G, B


class BadImageError(Exception):
    """A file that cannot be used as a scan; the message is the reason and does not name the file."""


class PassingError(BadImageError):
    """The same of a file that may be read another time, as when memory was short or a library is missing: no cache believes it."""


def failed(message: str, error: Exception) -> BadImageError:
    """What to raise where the reader of a file raised nearly anything."""
    passes = isinstance(error, (MemoryError, ImportError)) or LIBRARY_MISSING.search(str(error))
    return (PassingError if passes else BadImageError)(message)


def has_image_suffix(name: str) -> bool:
    """Whether a file is called what images are called, `.png` and so on."""
    format = Image.registered_extensions().get(PurePosixPath(name).suffix.lower())
    return format is not None and format not in UNREAD


def opens(content: bytes) -> bool:
    """Whether Pillow takes a file for an image, by its first bytes; it may be damaged or enormous all the same."""
    if is_tiff(content):
        return True
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.format not in UNREAD
    except Image.DecompressionBombError:
        return True
    except Exception:  # of what is none, plugins raise nearly anything
        return False


def is_tiff(content: bytes) -> bool:
    """Whether a file begins as TIFF or BigTIFF does."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def kind_of_file(content: bytes) -> str | None:
    """What a file that is no image is, and the way out, in words; None where that is not known."""
    return next((words for at, magic, words in OTHERS if content[at : at + len(magic)] == magic), None)


def read_scan(content: bytes, scale: Scale | None = None) -> np.ndarray:
    """Decode an image file to float32 (H, W) in [0, 1], black to white, on a scale or on its own; see `read_samples`."""
    samples = read_samples(content)
    return from_samples(samples, scale or common_scale([samples.extent])).clip(0, 1)


def read_samples(content: bytes) -> Samples:
    """Decode an image file to grey samples.

    - R = G = B is taken as it is, other colours by ITU-R 601 luma; palettes, CMYK and such go through RGB.
    - Transparency is composited on black.
    - 16-bit PNG is divided by 65535, its full range, and keeps its depth; 8-bit images by 255.
    - TIFF is read as its tags say. What is wider than 8 bits is of a kind, for which a data set has one scale.
    - Of several pages or frames one may be other than blank.

    Raises `BadImageError` for an empty, truncated, enormous or non-image file, for several pictures in one file, and for
    PostScript, which is a program.
    """
    with telling_faults(content):
        samples = only_picture(_tiff_pages(content) if is_tiff(content) else _frames(content))
    if not np.isfinite(samples.values).all():
        raise BadImageError("holds values that are not finite numbers")
    return samples


@contextlib.contextmanager
def telling_faults(content: bytes) -> Iterator[None]:
    """Raise what goes wrong in decoding a picture as `BadImageError`."""
    if not content:
        raise BadImageError("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadImageError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise BadImageError(kind_of_file(content) or "is not an image that Pillow can read") from None
    except BadImageError:
        raise
    # A broken file makes decoders raise nearly anything: OSError, SyntaxError, ...
    except Exception as error:
        raise failed(f"cannot be decoded ({str(error) or type(error).__name__})", error) from None


def only_picture(frames: Iterable[Samples]) -> Samples:
    """The one that is not blank, or the first of blank ones."""
    first = only = None
    for frame in frames:
        first = first or frame
        if frame.values.min() != frame.values.max():
            if only:
                raise BadImageError(
                    "holds several pictures, and a scan is one: save each as a file of its own"
                )
            only = frame
    if not first:
        raise BadImageError("holds no picture")
    return only or first


def _frames(content: bytes) -> Iterator[Samples]:
    """What Pillow reads, frame by frame."""
    with Image.open(io.BytesIO(content)) as image:
        if image.format in RUN_BY_OTHERS:
            raise BadImageError(f"is a drawing ({image.format}), which is not read: save it as PNG")
        frames = 1 if image.format in FIRST_IS_ALL else getattr(image, "n_frames", 1)
        for frame in range(frames):
            if frame:
                image.seek(frame)
            image.load()
            yield _grey(ImageOps.exif_transpose(image), image.format)


def _grey(image: Image.Image, format: str) -> Samples:
    """Any Pillow image to samples; see `read_samples`."""
    if image.mode == "F":
        return Samples(np.asarray(image), "float")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return Samples(values / np.float32(65535)) if format in FULL_16_BIT else Samples(values, "integer")
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"), dtype=np.float32)  # (H, W, 4)
        return Samples(luma(pixels[..., :3] / 255) * (pixels[..., 3] / 255))
    if image.mode in ("1", "L"):
        return Samples(np.asarray(image.convert("L"), dtype=np.float32) / 255)
    return Samples(luma(np.asarray(image.convert("RGB"), dtype=np.float32) / 255))


def _tiff_pages(content: bytes) -> Iterator[Samples]:
    """The pages of a TIFF file but for thumbnails and masks of transparency."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for number, page in enumerate(file.pages):
            if page.is_reduced or page.is_mask:
                continue
            if page.imagewidth * page.imagelength > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            yield _tiff_page(content, number, page)


def _tiff_page(content: bytes, number: int, page: tifffile.TiffPage) -> Samples:
    """One page. Up to 8 bits, and colours that are neither grey nor RGB, Pillow reads rightly."""
    unsigned, bits = page.sampleformat in (1, 4), page.bitspersample
    if (unsigned and bits <= 8) or page.photometric not in (0, 1, 2):
        with Image.open(io.BytesIO(content)) as image:
            image.seek(number)
            image.load()
            return _grey(ImageOps.exif_transpose(image), image.format)
    if page.axes not in ("YX", "YXS", "SYX") or page.samplesperpixel > 8 or page.sampleformat > 4:
        raise BadImageError(
            f"is no picture but {page.dtype} along the axes {page.axes}: save it as 16-bit PNG"
        )
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        values = _decompressed(content, number, page)
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3:
        alpha = (
            values[..., -1] / np.iinfo(values.dtype).max if unsigned and page.extrasamples[:1] == (2,) else 1
        )
        values = (luma(values[..., :3]) if page.photometric == 2 else values[..., 0]) * alpha
    values = TURNED.get(page.tags.valueof("Orientation", 1), np.asarray)(values)
    if page.sampleformat == 3:
        return Samples(values, "float", page.photometric == 0)
    if bits >= 16:
        return Samples(values, "integer", page.photometric == 0)
    black, white = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    unit = (values - np.float64(black)) / (white - black)
    return Samples(1 - unit if page.photometric == 0 else unit)


def _decompressed(content: bytes, number: int, page: tifffile.TiffPage) -> np.ndarray:
    """The samples (H, W) by Pillow, which knows more compressions, but fewer kinds of samples."""
    with Image.open(io.BytesIO(content)) as image:
        image.seek(number)
        values = np.asarray(image)
    if page.dtype.itemsize != values.dtype.itemsize or values.ndim != 2:
        raise PassingError(  # for imagecodecs reads it
            f"is compressed ({page.compression.name}) with {page.dtype} samples, which is not read: save it uncompressed"
        )
    return values.view(page.dtype.newbyteorder("="))


def luma(rgb: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) to grey (H, W) of the same range; a grey-valued image keeps its values exactly."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    return np.clip(rgb @ _ITU_R_601, rgb.min(), rgb.max())


def fit_square(
    unit: np.ndarray,
    resolution: int,
    fit: str,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> np.ndarray:
    """Bring a grey image (H, W) in [0, 1] to float32 (resolution, resolution) in [0, 1], with antialiasing unless another resampling is given.

    fit: "pad" centres it on a black square, "crop" takes the centred square, "stretch" ignores the aspect.
    Raises `BadImageError` if padding would need a square beyond Pillow's limit for decompression bombs.
    """
    height, width = unit.shape
    top, left, rows, columns = square_in(height, width, fit)
    if fit == "pad" and rows * columns > Image.MAX_IMAGE_PIXELS:
        raise BadImageError(f"is too far from square to be padded ({width}x{height} pixels)")
    unit = unit[max(top, 0) : top + rows, max(left, 0) : left + columns]
    above, beside = max(-top, 0), max(-left, 0)
    unit = np.pad(unit, ((above, rows - len(unit) - above), (beside, columns - unit.shape[1] - beside)))
    square = Image.fromarray(np.ascontiguousarray(unit)).resize((resolution, resolution), resampling)
    return np.clip(np.asarray(square), 0, 1)  # Lanczos overshoots at sharp edges


def square_in(height: int, width: int, fit: str) -> tuple[int, int, int, int]:
    """What `fit_square` takes of a picture: its first row and column, below 0 where it is padded, and rows and columns."""
    if fit == "stretch":
        return 0, 0, height, width
    side = max(height, width) if fit == "pad" else min(height, width)
    return int((height - side) / 2), int((width - side) / 2), side, side
