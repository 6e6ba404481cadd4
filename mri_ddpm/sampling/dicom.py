"""A sample as a DICOM Secondary Capture image, marked as synthetic.

The attributes and their types are of DICOM PS3.3: A.8.1 (Secondary Capture Image) and the modules it names.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mri_ddpm.data.intensity import to_uint16
from mri_ddpm.data.reading.marks import MARK, NOT_FOR_DIAGNOSIS
from mri_ddpm.errors import import_extra
from mri_ddpm.pipelines.pipeline_mri_ddpm import as_array
from mri_ddpm.sampling.provenance import json_text

# Where rows and columns lead, in radiological display: Left, Posterior, Foot
PATIENT_ORIENTATION = {"axial": ["L", "P"], "coronal": ["L", "F"], "sagittal": ["P", "F"]}
SH, LO, ST, LT = 16, 64, 1024, 10240  # characters that values of these kinds may have
EMPTY = (  # required, with no value where none is known
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
OF_ONE_IMAGE = ("class", "channel", "seed", "index")  # facts that images of one sampling differ in


def save_dicom(
    path: Path,
    image: Image.Image | np.ndarray,
    facts: dict,
    *,
    spacing_mm: float | None = None,
    plane: str | None = None,
) -> None:
    """Write a grey image ``(H, W)`` as 16-bit MONOCHROME2; the same arguments give the same bytes.

    All UIDs are hashes of the facts, and an image's also of its pixels. So different images never share one. A lone slice
    has no Image Position.

    Args:
        path: of the ``.dcm`` file.
        image: of 8 or 16 bits, or floats in [0, 1].
        facts: written as JSON into Image Comments; those that are ``None`` are left out. ``model``, ``class``, ``seed``
            (of this image) and ``index`` (in its sampling) have attributes of their own.
        spacing_mm: side of a pixel.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``, in radiological display.

    Raises:
        InputError: when pydicom is missing.
    """
    pydicom = import_extra("pydicom", "volumes")
    levels = to_uint16(as_array(image, "image"))
    sizes = {"PixelSpacing": [f"{spacing_mm:.8g}"] * 2} if spacing_mm else {}
    dataset = to_dataset(
        {
            **marks(facts),
            **identity(facts, levels, pydicom.uid.generate_uid),
            **sizes,
            "SOPClassUID": pydicom.uid.SecondaryCaptureImageStorage,
            "ConversionType": "WSD",  # made by a workstation
            "Modality": "OT",  # other: no scanner was involved
            "BodyPartExamined": "BRAIN",  # not one of a pair, so no Laterality
            "PatientOrientation": PATIENT_ORIENTATION[plane] if plane else None,
            "Rows": levels.shape[0],
            "Columns": levels.shape[1],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "WindowCenter": 32768,
            "WindowWidth": 65536,  # all levels, black to white
            **dict.fromkeys(EMPTY),
        },
        pydicom.Dataset,
    )
    dataset.add_new("PixelData", "OW", levels.astype("<u2").tobytes())
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def marks(facts: dict) -> dict:
    """Every attribute that says that the image is synthetic, and by which model."""
    equipment = {
        "Manufacturer": "mri-ddpm",
        "ManufacturerModelName": plain(facts.get("model", "unknown")),
        "SoftwareVersions": plain(facts.get("Software", "mri-ddpm")),
    }
    synthesizing = {  # DICOM PS3.16, CID 7005
        "CodeValue": "109100",
        "CodingSchemeDesignator": "DCM",
        "CodeMeaning": "Synthesizing Equipment",
    }
    of_class = f": {facts['class']}" if facts.get("class") is not None else ""
    return {
        "SpecificCharacterSet": "ISO_IR 192",  # UTF-8
        "SyntheticData": "YES",
        "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
        "BurnedInAnnotation": "NO",
        **equipment,
        "ContributingEquipmentSequence": [{**equipment, "PurposeOfReferenceCodeSequence": [synthesizing]}],
        "StudyDescription": NOT_FOR_DIAGNOSIS,
        "SeriesDescription": plain(NOT_FOR_DIAGNOSIS + of_class),
        "DerivationDescription": plain(f"{NOT_FOR_DIAGNOSIS}. {facts.get('synthetic', '')}", ST),
        "ImageComments": json_text(facts)[:LT],
    }


def identity(facts: dict, levels: np.ndarray, generate_uid: Callable[..., str]) -> dict:
    """Patient, study, series and image.

    Images of one sampling are one study of one invented patient, numbered by the first seed. Each is a series of its own:
    dcm2niix and others stack the images of a series into a volume.
    """
    index = int(facts.get("index", 0))
    first_seed = int(facts.get("seed", 0)) - index
    shared = {name: value for name, value in facts.items() if name not in OF_ONE_IMAGE}
    study = json_text({**shared, "seed": first_seed})
    image = json_text(facts) + hashlib.sha256(levels.astype("<u2").tobytes()).hexdigest()
    return {
        "PatientName": f"{MARK}^MRI-DDPM",
        "PatientID": f"{MARK}-{first_seed:06d}",
        "StudyInstanceUID": generate_uid(entropy_srcs=["study", study]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series", image]),
        "SOPInstanceUID": generate_uid(entropy_srcs=["image", image]),
        "StudyID": str(first_seed)[-SH:],
        "SeriesNumber": index,
        "InstanceNumber": index,
    }


def to_dataset(attributes: dict, dataset_class: type) -> object:
    """Attributes by keyword as pydicom's data set; a list of dicts becomes a sequence."""
    dataset = dataset_class()
    for name, value in attributes.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            value = [to_dataset(item, dataset_class) for item in value]
        setattr(dataset, name, value)
    return dataset


def plain(text: str, length: int = LO) -> str:
    """A text that fits: names come with the model, and may hold anything."""
    clean = re.sub(r"[\\\x00-\x1f\x7f]", "_", str(text))  # a backslash would separate values
    return clean.encode("utf-8", "replace").decode()[:length].strip()
