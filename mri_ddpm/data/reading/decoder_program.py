"""The pixels of a DICOM file as they are stored; and a program that decodes what comes by its standard input.

Decoders are written in C and may crash, so `decoding.Decoder` runs this file as a process of its own. It stands alone:
run by its path, it belongs to no package.
"""

import io
import os
import sys

MAX_BYTES = 6 * 2**30  # of memory, for the process; a file can claim any size
TAGS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "FloatPixelData",
    "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip


def stored_pixels(content: bytes):
    """An array (frames, rows, columns), or (frames, rows, columns, 3) for colours, which come as RGB."""
    import pydicom
    from pydicom.pixels import pixel_array

    dataset = pydicom.dcmread(io.BytesIO(content), force=True, specific_tags=list(TAGS))
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, _ = dataset.original_encoding
        plain = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain
    colours = (3,) if dataset.get("SamplesPerPixel") == 3 else ()
    return pixel_array(dataset).reshape(-1, dataset.Rows, dataset.Columns, *colours)


def send(file, content: bytes) -> None:
    """Its length, then itself."""
    file.write(len(content).to_bytes(8, "little") + content)
    file.flush()


def receive(file) -> bytes | None:
    """What was sent; None where nothing more comes."""
    head = file.read(8)
    size = int.from_bytes(head, "little")
    content = file.read(size) if len(head) == 8 else b""
    return content if len(head) == 8 and len(content) == size else None


def main() -> None:
    """Answer each file with `+` and its pixels as .npy, or with `-` and the reason."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # on which decoders talk
        os.dup2(nowhere, stream)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    except (ImportError, ValueError, OSError):  # Windows has none; or less is allowed already
        pass
    import numpy as np

    while (content := receive(sys.stdin.buffer)) is not None:
        answer = io.BytesIO()
        try:
            pixels = stored_pixels(content)
            answer.write(b"+")
            np.save(answer, pixels, allow_pickle=False)
        except Exception as error:  # decoders raise nearly anything
            answer = io.BytesIO(b"-" + (str(error) or type(error).__name__).encode("utf-8", "replace"))
        send(answers, answer.getvalue())


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]  # its modules are no packages
    main()
