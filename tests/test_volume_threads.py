"""Volumes are decoded by threads: what they share, and how many there are."""

import os

import nibabel
import numpy as np
import pytest

IN_A_FRESH_PROCESS = """
import sys, threading

strangers = []

class Watch:
    def find_spec(name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            strangers.append(name)

sys.meta_path.insert(0, Watch)
from mri_ddpm.data import account_of

manifest, _ = account_of(sys.argv[1], cache_dir=sys.argv[2])
assert manifest["volumes"]["total"] == 4
assert not {name.partition(".")[0] for name in strangers} & {"nibabel", "pydicom", "scipy"}, strangers
assert "nibabel" in sys.modules
"""


def test_threads_import_no_library_at_once(tmp_path, run_fresh):
    """Else, now and then, nibabel and pydicom stay half imported, and the next DICOM file is an AttributeError."""
    for number in range(4):
        voxels = np.random.default_rng(number).integers(0, 900, (24, 24, 8)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"sub-0{number}_T1w.nii.gz")
    run_fresh(IN_A_FRESH_PROCESS, tmp_path, tmp_path / "cache")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone binds processes to cores")
def test_cores_are_those_that_the_process_may_use(run_fresh):
    run_fresh(
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
        "from mri_ddpm.data.volume_cache import _cores; assert _cores() == 1"
    )
