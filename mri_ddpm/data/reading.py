"""One scan from its file's bytes to a grey float image, and from there to a square.

H, W: height and width in pixels, after the rotation that EXIF asks for.
"""

import io
import warnings
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FITS = ("pad", "crop", "stretch")
RUN_BY_OTHERS = ("EPS", "WMF")  # Pillow hands these programs to Ghostscript and to Windows
UNREAD = ("PDF", "MPEG", "HDF5", "GRIB", "BUFR")  # Pillow knows their names, but cannot read them
# Where in a file of another kind something stands that no image has there, what it is, and the way out
OTHERS = (
    (128, b"DICM", "is a DICOM file, which is not read: save its slices as 16-bit PNG"),
    (344, b"n+1\0", "is a NIfTI volume, which is not read: save its slices as 16-bit PNG"),
    (0, b"\x1f\x8b", "is compressed (a .nii.gz?), which is not read: save its slices as 16-bit PNG"),
    (0, b"PAR1", "is a parquet table: give the folder it lies in by --dataset_name"),
    (0, b"ARROW1", "is an Arrow table: give the folder it lies in by --dataset_name"),
    (0, b"\xff\xff\xff\xff", "is an Arrow table: give the folder it lies in by --dataset_name"),
    (0, b"MATLAB 5", "is a MATLAB file, which is not read: save its slices as 16-bit PNG"),
    (0, b"MATLAB 7", "is a MATLAB file, which is not read: save its slices as 16-bit PNG"),
    (0, b"\x93NUMPY", "is a numpy array, which is not read: save its slices as 16-bit PNG"),
    (0, b"NRRD", "is an NRRD volume, which is not read: save its slices as 16-bit PNG"),
)
_ITU_R_601 = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # luma of R, G, B


class BadImageError(Exception):
    """A file that cannot be used as a scan; the message is the reason and does not name the file."""


def has_image_suffix(name: str) -> bool:
    """Whether a file is called what images are called, `.png` and so on."""
    format = Image.registered_extensions().get(PurePosixPath(name).suffix.lower())
    return format is not None and format not in UNREAD


def opens(content: bytes) -> bool:
    """Whether Pillow takes a file for an image, by its first bytes; it may be damaged or enormous all the same."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.format not in UNREAD
    except Image.DecompressionBombError:
        return True
    except Exception:  # of what is none, plugins raise nearly anything
        return False


def kind_of_file(content: bytes) -> str | None:
    """What a file that is no image is, and the way out, in words; None where that is not known."""
    return next((words for at, magic, words in OTHERS if content[at : at + len(magic)] == magic), None)


def read_scan(content: bytes) -> np.ndarray:
    """Decode an image file to float32 (H, W) in [0, 1], black to white; of several frames the first.

    - R = G = B is taken as it is, other colours by ITU-R 601 luma; palettes, CMYK and such go through RGB.
    - Transparency is composited on black.
    - 16-bit grey is divided by 65535, its full range, and keeps its depth. (16-bit colour Pillow reads at 8.)
    - 32-bit integers within 0..65535 are taken as 16-bit, floats within [0, 1] as they are; where values lie
      outside, no full range is agreed on, so the image's own minimum and maximum become 0 and 1.

    Raises `BadImageError` for an empty, truncated, enormous or non-image file, and for PostScript, which is a program.
    """
    if not content:
        raise BadImageError("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                if image.format in RUN_BY_OTHERS:
                    raise BadImageError(f"is a drawing ({image.format}), which is not read: save it as PNG")
                image.load()
                return _grey(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadImageError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise BadImageError(kind_of_file(content) or "is not an image that Pillow can read") from None
    except BadImageError:
        raise
    except (
        Exception
    ) as error:  # a broken file makes decoders raise nearly anything: OSError, SyntaxError, ...
        raise BadImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from None


def _grey(image: Image.Image) -> np.ndarray:
    """Any Pillow image to float32 (H, W) in [0, 1]; see `read_scan`."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(np.asarray(image))
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"), dtype=np.float32)  # (H, W, 4)
        return _luma(pixels[..., :3]) * (pixels[..., 3] / 255)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"), dtype=np.float32) / 255
    return _luma(np.asarray(image.convert("RGB"), dtype=np.float32))


def _luma(rgb: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) in 0..255 to grey (H, W) in [0, 1]; a grey-valued image keeps its values exactly."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red / 255
    return np.clip(rgb @ _ITU_R_601 / 255, 0, 1)


def _deep_grey(values: np.ndarray) -> np.ndarray:
    """16-bit, 32-bit or float grey (H, W) to float32 in [0, 1]; see `read_scan`."""
    full_range = 1.0 if values.dtype.kind == "f" else 65535.0
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise BadImageError("holds values that are not finite numbers")
    low, high = values.min(), values.max()
    if low < 0 or high > full_range:
        values, full_range = values - low, high - low or 1.0
    return (values / full_range).astype(np.float32)


def fit_square(unit: np.ndarray, resolution: int, fit: str) -> np.ndarray:
    """Bring a grey image (H, W) in [0, 1] to float32 (resolution, resolution) in [0, 1], with antialiasing.

    fit: "pad" centres it on a black square, "crop" takes the centred square, "stretch" ignores the aspect.
    Raises `BadImageError` if padding would need a square beyond Pillow's limit for decompression bombs.
    """
    height, width = unit.shape
    if fit == "pad":
        side = max(height, width)
        if side**2 > Image.MAX_IMAGE_PIXELS:
            raise BadImageError(f"is too far from square to be padded ({width}x{height} pixels)")
        top, left = (side - height) // 2, (side - width) // 2
        unit = np.pad(unit, ((top, side - height - top), (left, side - width - left)))
    elif fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        unit = unit[top : top + side, left : left + side]
    square = Image.fromarray(np.ascontiguousarray(unit)).resize(
        (resolution, resolution), Image.Resampling.LANCZOS
    )
    return np.clip(np.asarray(square), 0, 1)  # Lanczos overshoots at sharp edges
