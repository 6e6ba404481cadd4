"""Scans for training: found, read, checked, de-duplicated and split; and the phantom for want of scans."""

from .account import dark_warning, format_account, format_findings
from .channels import Channels
from .dataset import ScanDataset
from .intensity import to_model_range, to_unit_range
from .layout import NO_PATIENTS
from .manifest import PLACES, write_sources
from .phantom import CLASS_NAMES as PHANTOM_CLASS_NAMES
from .phantom import draw_phantoms
from .reading import read_volume
from .reading.volumes import Volume, slices
from .scans import Scans, account_of, load_phantoms, load_scans

__all__ = [
    "NO_PATIENTS",
    "PHANTOM_CLASS_NAMES",
    "PLACES",
    "Channels",
    "ScanDataset",
    "Scans",
    "Volume",
    "account_of",
    "dark_warning",
    "draw_phantoms",
    "format_account",
    "format_findings",
    "load_phantoms",
    "load_scans",
    "read_volume",
    "slices",
    "to_model_range",
    "to_unit_range",
    "write_sources",
]
