"""How a NIfTI or DICOM file says that it is synthetic: what samples are marked with, and what marks are looked for.

De-identifiers and converters drop fields, so one mark of several is enough.
"""

import re
from collections.abc import Mapping

MARK = "SYNTHETIC"
NOT_FOR_DIAGNOSIS = f"{MARK} - NOT FOR DIAGNOSIS"
DICOM_TEXTS = ("PatientID", "PatientName", "StudyDescription", "SeriesDescription", "DerivationDescription")
# Not the word alone: scanners call weighted images that they compute from a patient's maps "SYNTHETIC T1"
OF_SAMPLES = re.compile(rf"{MARK}( - NOT FOR|-\d|\^MRI-DDPM| mri-ddpm|$)")


def nifti_is_synthetic(header: Mapping) -> bool:
    """Whether nibabel's header of a volume has a mark."""
    fields = [name for name in ("descrip", "intent_name") if name in header]  # Analyze has no intent
    return any(OF_SAMPLES.match(header[name].item().decode("latin-1")) for name in fields)


def dicom_is_synthetic(dataset: Mapping) -> bool:
    """Whether pydicom's data set of an image has a mark; Synthetic Data (0008,001C) is the standard's own."""
    texts = [str(dataset.get(name, "")) for name in DICOM_TEXTS]
    return dataset.get("SyntheticData") == "YES" or any(map(OF_SAMPLES.match, texts))
