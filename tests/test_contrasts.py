"""The contrast that a scan's name tells."""

import pytest

from mri_ddpm.data.reading.contrasts import CONTRASTS, contrast_of_name

NAMES = {
    "t1": (
        "sub-01_ses-t2_T1w.nii.gz", "sub-01_acq-T2prep_T1w.nii", "sub-01_T1w_brain.nii.gz", "BraTS20_Training_001_t1.nii",
        "BraTS-GLI-00000-000-t1n.nii.gz", "IXI002-Guys-0828-T1.nii.gz", "OAS1_0001_MR1_mpr-1_anon.hdr",
        "ADNI_002_S_0295_MR_MP-RAGE__br_raw.nii", "AX T1 PRE CONTRAST", "AX T1 WITHOUT CONTRAST", "AX T1 W/O", "AX T1 post-op",
        "SAG T1 FSE", "t1_mprage_sag_p2_iso", "T1W_3D_TFE", "3DT1", "T1TSE", "Sag FSPGR 3D", "AX BRAVO",
    ),
    "t1ce": (
        "sub-01_ses-1_ce-gadolinium_T1w.nii.gz", "BraTS20_Training_001_t1ce.nii.gz", "BraTS-GLI-00000-000-t1c.nii.gz",
        "AX T1 POST GD", "AX T1 POST", "AX T1 +C", "Ax T1 C+", "T1+C", "t1_mprage_sag_p2_iso_KM", "t1gd",
    ),
    "t2": ("sub-01_T2w.nii", "BraTS-GLI-00000-000-t2w.nii.gz", "IXI002-Guys-0828-T2.nii.gz", "T2W_TSE", "t2_tse_tra", "t2_space_sag"),
    "flair": (
        "sub-01_FLAIR.nii.gz", "BraTS2021_00000_flair.nii.gz", "BraTS-GLI-00000-000-t2f.nii.gz", "t2_flair_tra",
        "t2_tirm_tra_dark-fluid", "AX FLAIR POST", "T2-FLAIR",
    ),
    "pd": ("sub-01_run-2_PDw.nii.gz", "IXI002-Guys-0828-PD.nii.gz", "PD AX"),
    "dwi": ("sub-01_dir-AP_dwi.nii.gz", "IXI002-Guys-0828-DTI-03.nii.gz", "ep2d_diff_3scan_trace_p2"),
    None: (
        "sub-01_T2starw.nii.gz", "sub-01_task-rest_bold.nii.gz", "sub-01_T1map.nii.gz", "IXI002-Guys-0828-MRA.nii.gz", "AX T2* GRE",
        "AX PD/T2", "pd+t2_tse", "ep2d_diff_3scan_trace_p2_ADC", "MR000001.dcm", "brain.nii.gz", "ch2.nii.gz", "anat.nii.gz", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "contrast"), [(name, contrast) for contrast in NAMES for name in NAMES[contrast]]
)
def test_names_tell_the_contrast(name, contrast):
    assert contrast_of_name(name) == contrast


def test_channels_of_a_data_set():
    decathlon = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    found = [contrast_of_name(f"BRATS_001_000{number}.nii.gz", decathlon) for number in range(5)]
    assert found == ["flair", "t1", "t1ce", "t2", None]
    assert contrast_of_name("sub-01_T1w.nii.gz", decathlon) == "t1"
    assert set(NAMES) == {*CONTRASTS, None}
