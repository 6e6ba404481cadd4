"""Patients: who they are, that none is on two sides, and that nothing of them leaves the machine."""

import io
import json
import stat
import sys

import datasets
import numpy as np
import pytest
from PIL import Image
from volume_sets import head, nifti

from mri_ddpm import commands
from mri_ddpm.data import account_of, draw_phantoms, format_account, format_findings, load_scans
from mri_ddpm.data.patients import KNOWN, known_name, patients_by_name
from mri_ddpm.data.split import ScanRecord, assign_split, group_records
from mri_ddpm.errors import InputError

DRAWN = draw_phantoms(40, 48, seed=5)[0]


def png(head):
    file = io.BytesIO()
    Image.fromarray(np.round(head * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


HEADS = [png(head) for head in DRAWN]


@pytest.fixture
def load(tmp_path):
    """The scans of a folder with one head a path, or with the content that is given for it."""

    def make(paths, tables=None, resolution=16, **options):
        contents = paths if isinstance(paths, dict) else dict(zip(paths, HEADS, strict=False))
        for path, content in {**contents, **(tables or {})}.items():
            file = tmp_path / "scans" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        folder, cache = str(tmp_path / "scans"), str(tmp_path / "cache")
        return load_scans(train_data_dir=folder, cache_dir=cache, resolution=resolution, **options)

    return make


def sides(scans, patient_of):
    """{patient: the splits its scans are in}, by the paths."""
    found = {}
    for row in scans.manifest["files"]:
        found.setdefault(patient_of(scans.paths[row["path"]]), set()).add(row["split"])
    return found


@pytest.mark.parametrize(
    ("path", "patient", "source"),
    [
        ("sub-01/anat/sub-01_ses-2_T1w.png", "sub-01", "BIDS"),
        ("BraTS20_Training_001/BraTS20_Training_001_flair.png", "BraTS20_Training_001", "BraTS"),
        ("BraTS-GLI-00017-001/BraTS-GLI-00017-001-t1n.png", "BraTS-GLI-00017", "BraTS"),
        ("Brats18_TCIA01_231_1/Brats18_TCIA01_231_1_t1.png", "Brats18_TCIA01_231", "BraTS"),
        ("IXI002-Guys-0828-T1.png", "IXI002", "IXI"),
        ("disc1/OAS1_0001_MR1/slice_7.png", "OAS1_0001", "OASIS"),
        ("OAS30001_MR_d0129/1.png", "OAS30001", "OASIS"),
        ("ADNI_002_S_0295_MR.png", "002_S_0295", "ADNI"),
        ("TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_3.png", "TCGA_CS_4941", "TCGA"),
        ("TCGA-02-0006/1.png", "TCGA-02-0006", "TCGA"),
        ("UPENN-GBM-00001_11_T1.png", "UPENN-GBM-00001", "UPENN-GBM"),
        ("UCSF-PDGM-0004_nifti/1.png", "UCSF-PDGM-0004", "UCSF-PDGM"),
    ],
)
def test_known_names(path, patient, source):
    assert patients_by_name([path]) == ({path: patient}, f"{source} names")
    assert patients_by_name([path, "other.png"]) is None


@pytest.mark.parametrize("path", ["glioma/7.png", "train/img_0001.png", "sub-/1.png", "IXI02.png", "a-sub-b"])
def test_names_that_are_of_nobody(path):
    assert known_name([path]) is None


def test_every_known_name_is_tested():
    tested = {mark.args[1][i][2] for mark in test_known_names.pytestmark for i in range(len(mark.args[1]))}
    assert tested == set(KNOWN)


@pytest.mark.parametrize(
    "name",
    [
        "{}/{}.png",
        "sub-{:02d}/{}.png",
        "x/sub-{:02d}/{}.png",
        "train/glioma/case_{}/{}.png",
        "sub-{:02d}_{}.png",
    ],
)
def test_slices_of_a_patient_stay_together(load, name):
    name = name.replace("{}/", "{:03d}/") if name == "{}/{}.png" else name
    paths = [name.format(patient, i) for patient in range(8) for i in range(4)]
    if name.startswith("x"):  # two classes
        paths = [path.replace("x", "xy"[int(path[6:8]) % 2]) for path in paths]
    scans = load(paths, validation_share=0.25)
    assert scans.manifest["patients"] == {
        "total": 8,
        "train": 6,
        "validation": 2,
        "test": 0,
        "scans_without": 0,
    }
    order = {path: number // 4 for number, path in enumerate(paths)}
    found = sides(scans, order.__getitem__)
    assert sorted(map(sorted, found.values())) == [["train"]] * 6 + [["validation"]] * 2
    assert len(scans.train) == 24


def test_no_patient_is_on_two_sides_of_a_hundred_layouts():
    """Random patients, parts, classes, copies within and between patients."""
    rng = np.random.default_rng(0)
    hashes = {f"{i:064x}": (rng.bytes(128), rng.bytes(128)) for i in range(200)}
    split_off = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        count, patients = rng.integers(20, 60), rng.integers(2, 30)
        records = [
            ScanRecord(
                path=f"{i}", part=rng.choice(["training", "validation", "testing"], p=[0.8, 0.1, 0.1] if seed % 2 else [1, 0, 0]),
                class_name=str(rng.choice(["a", "b"])), sha256=f"{rng.integers(200):064x}", flaw=None,
                patient=None if rng.random() < 0.1 else f"p{rng.integers(patients)}",
            )
            for i in range(count)
        ]  # fmt: skip
        used = {record.sha256: hashes[record.sha256] for record in records}
        try:
            assign_split(records, 0.2, bool(seed % 3), seed, group_records(records, used))
        except InputError:
            continue  # all joined into one
        split_off += 1
        for key in ("patient", "sha256"):
            found = {}
            for record in records:
                if getattr(record, key) is not None and record.split in ("train", "validation", "test"):
                    found.setdefault(getattr(record, key), set()).add(record.split)
            assert all(len(splits) == 1 for splits in found.values())
    assert split_off > 20


def test_neighbouring_slices_of_a_patient_are_no_copies_but_equal_files_are(load):
    """Ten pictures that differ by a little brightness: of unknown patients nine of them are copies."""
    near = [png(DRAWN[0] * (1 - i / 100)) for i in range(10)]
    paths = {f"sub-01/{i}.png": head for i, head in enumerate(near)} | {"sub-01/again.png": near[3]}
    others = {f"sub-{p:02d}/{i}.png": HEADS[4 * p + i] for p in range(2, 5) for i in range(3)}
    scans = load({**paths, **others})
    repeats = [scans.paths[row["path"]] for row in scans.manifest["files"] if row["split"] == "repeat"]
    assert repeats == ["sub-01/again.png"]


def test_patients_that_share_their_pictures_are_one(load):
    """Half of one's pictures, brighter and re-encoded, or one file of the same bytes."""
    files = {f"sub-{p:02d}/{i}.png": HEADS[4 * p + i] for p in range(6) for i in range(4)}
    files |= {"sub-10/0.png": png(DRAWN[0] * 0.9), "sub-10/1.png": png(DRAWN[1] * 0.9)}
    files |= {f"sub-10/{i}.png": HEADS[30 + i] for i in (2, 3)}
    files |= {"sub-11/0.png": HEADS[4], "sub-11/1.png": HEADS[35], "sub-11/2.png": HEADS[36]}
    for seed in range(6):
        found = sides(load(files, seed=seed, validation_share=0.3), lambda path: path.split("/")[0])
        used = {name: splits - {"repeat"} for name, splits in found.items()}
        assert used["sub-10"] == used["sub-00"]
        assert used["sub-11"] == used["sub-01"]


@pytest.mark.parametrize("side", [lambda p: 48, lambda p: 40 + p], ids=["same bytes", "other sizes"])
@pytest.mark.parametrize("keep_repeats", [False, True])
def test_a_picture_of_one_value_joins_no_patients(load, side, keep_repeats):
    """A head and a black slice of each patient, of whom one is in train and in test."""
    places = [*(("train", p) for p in range(4)), *(("test", p) for p in range(3, 7))]
    files = {f"{part}/sub-{p}/head.png": HEADS[p + 10 * (part == "test")] for part, p in places}
    files |= {f"{part}/sub-{p}/black.png": png(np.zeros((side(p), side(p)))) for part, p in places}
    scans = load(files, keep_repeats=keep_repeats)
    found = {scans.paths[row["path"]]: row["split"] for row in scans.manifest["files"]}
    heads = [found[f"{part}/sub-{p}/head.png"] for part, p in places]
    assert sorted(heads[:4]) == ["train"] * 3 + ["validation"]
    assert heads[4:] == ["leak"] + ["test"] * 3
    black = [found[f"{part}/sub-{p}/black.png"] for part, p in places]
    assert black == [heads[0]] + ["repeat"] * 3 + ["leak"] * 4


def test_a_picture_that_two_patients_share_by_chance_is_on_one_side(load):
    """One of many: the patients are not joined, and the picture is left out of validation."""
    files = {f"sub-{p:02d}/{i}.png": HEADS[5 * p + i] for p in range(7) for i in range(5)}
    files["sub-06/0.png"] = png(DRAWN[0] * 0.9)
    seen = set()
    for seed in range(12):
        scans = load(files, seed=seed)
        rows = {scans.paths[row["path"]]: row["split"] for row in scans.manifest["files"]}
        of_two = rows["sub-00/1.png"], rows["sub-06/1.png"]
        seen.add(of_two)
        shared = {rows["sub-00/0.png"], rows["sub-06/0.png"]}
        assert shared == ({"train"} if of_two == ("train", "train") else {"train", "leak"})
    assert seen == {("train", "train"), ("validation", "train"), ("train", "validation")}


def test_a_patient_of_two_parts_leaks(load):
    paths = [
        f"{part}/sub-{p:02d}/{i}.png"
        for part, ps in (("train", range(6)), ("test", (5, 7)))
        for p in ps
        for i in range(3)
    ]
    found = sides(load(paths), lambda path: tuple(path.split("/")[:2]))
    assert found[("test", "sub-05")] == {"leak"}
    assert found[("test", "sub-07")] == {"test"}


CSV = "file_name,patient_id,label,split\n" + "".join(
    f"{'ab'[i % 2]}{i}.png,P{i // 3},{'xy'[i // 3 % 2]},{'val' if i > 14 else 'train'}\n" for i in range(18)
)
PATHS = [f"{'ab'[i % 2]}{i}.png" for i in range(18)]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_a_table_beside_the_scans(load, form):
    rows = [line.split(",") for line in CSV.splitlines()]
    text = {
        "csv": CSV,
        "tsv": "\n".join("\t".join(row) for row in rows),
        "jsonl": "\n".join(json.dumps(dict(zip(rows[0], row, strict=True))) for row in rows[1:]),
    }[form]
    scans = load(PATHS, {f"metadata.{form}": text})
    assert scans.class_names == ("x", "y")
    assert scans.manifest["patients"] == {
        "total": 6,
        "train": 5,
        "validation": 1,
        "test": 0,
        "scans_without": 0,
    }
    assert (len(scans.train), len(scans.validation)) == (15, 3)
    assert f"patients: 6 by metadata.{form}" in format_findings(scans.manifest)
    assert f"classes: 2 labels in the column label of metadata.{form}" in format_findings(scans.manifest)


def test_a_table_as_spreadsheets_write_it(load):
    """A mark at its head, semicolons, empty rows at its end."""
    text = "\ufeff" + CSV.replace(",", ";").replace("\n", "\r\n") + ";;;\r\n;;;\r\n"
    assert load(PATHS, {"metadata.csv": text}).manifest["patients"]["total"] == 6


def test_parts_are_counted_by_the_table_and_else_by_the_folders(load):
    said = "parts: 15 in train, 3 in val; validation is by val, and --validation_share is not used"
    assert said in format_findings(load(PATHS, {"metadata.csv": CSV}).manifest)
    without = CSV.replace("train\n", "\n")
    assert "parts: 15 in training, 3 in val" in format_findings(
        load(PATHS, {"metadata.csv": without}).manifest
    )


def test_a_split_of_the_table_counts_before_the_folder(load):
    paths = [f"{'train' if i < 12 else 'test'}/{i}.png" for i in range(18)]
    table = "file_name,split\n" + "".join(
        f"{path},{'val' if i in (1, 3) else ''}\n" for i, path in enumerate(paths)
    )
    manifest = load(paths, {"metadata.csv": table}).manifest
    assert "parts: 10 in train/, 2 in val, 6 in test/; validation is by val" in format_findings(manifest)
    assert {part: row["total"] for part, row in manifest["parts"].items()} == {
        "training": 10,
        "validation": 2,
        "testing": 6,
    }


@pytest.mark.parametrize("head", ["file_name, patient_id , label, split", "File_Name,Patient_ID,LABEL,Split"])
def test_the_names_of_columns_in_capitals_and_with_blanks(load, head):
    table = CSV.replace("file_name,patient_id,label,split", head)
    for column in ("label", "Label"):
        manifest = load(PATHS, {"metadata.csv": table}, label_column=column).manifest
        assert manifest["patients"]["total"] == 6
        assert manifest["class_names"] == ["x", "y"]
        assert manifest["parts"].keys() == {"training", "validation"}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_class_may_be_called_none(load, form):
    """Elsewhere the word says that there is nothing; so does a null of JSON among the classes."""
    words = ["none", "null", "glioma"] * 6
    rows = [
        {"file_name": path, "label": word, "contrast": "None"}
        for path, word in zip(PATHS, words, strict=True)
    ]
    if form == "csv":
        text = "file_name,label,contrast\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    scans = load(PATHS, {f"metadata.{form}": text})
    assert scans.class_names == ("glioma", "none", "null")
    assert "contrast" not in format_account(scans.manifest)
    for nothing in ('""', "null", '"n/a"'):
        lines = [json.dumps(row) for row in rows[1:]]
        lines.append(f'{{"file_name": "{PATHS[0]}", "label": {nothing}}}')
        tables = {"metadata.csv": "file_name\n", "metadata.jsonl": "\n".join(lines)}
        with pytest.raises(InputError, match="1 of 18 files .* a0.png has no label"):
            load(PATHS, tables)


def test_the_table_is_that_of_imagefolder(load, tmp_path):
    """`datasets` reads the same folder in the same way."""
    scans = load(PATHS, {"metadata.csv": CSV.replace(",split", ",part")})
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "scans"), split="train", cache_dir=str(tmp_path / "hub")
    )
    by_path = {row["image"].filename.split("/")[-1]: row for row in theirs}
    for row in scans.manifest["files"]:
        theirs_row = by_path[scans.paths[row["path"]]]
        assert row["class"] == theirs_row["label"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file_name,patient_id\na0.png,P1\nb1.png,\n", "has no patient for b1.png"),
        ("name,patient_id\na0.png,P1\n", "line 2, has no file_name"),
        ("file_name,patient_id\na0.png,P1\na0.png,P2\n", "says something else of a0.png"),
        ("file_name,split\na0.png,often\nb1.png,train\n", "has the split often"),
        ("file_name,label\na0.png,x,y,z\n", "a line has more fields"),
        ("file_name,Label, label\na0.png,x,\n", r"cannot be read \(the column label is there twice\)"),
        (
            "file_name,patient_id,label\na0.png,P1,x\nb1.png,P2,P1\n",
            "P1 is the name of a class and of a patient",
        ),
        (b"\xff\xfe\x00", "is not written in UTF-8; save it anew as CSV UTF-8"),
    ],
)
def test_tables_that_are_wrong(load, table, words):
    with pytest.raises(InputError, match=words):
        load(["a0.png", "b1.png"], {"metadata.csv": table})


def test_a_file_without_a_line_is_named(load):
    with pytest.raises(InputError, match=r"a9\.png has no line in metadata\.csv"):
        load([*PATHS, "a9.png"], {"metadata.csv": CSV})


def test_classes_of_patients_by_participants_tsv(load):
    paths = [f"sub-{p:02d}/anat/sub-{p:02d}_{i}.png" for p in range(8) for i in range(3)]
    table = "participant_id\tage\tdiagnosis\n" + "".join(
        f"sub-{p:02d}\t{50 + p}\t{'ab'[p % 2]}\n" for p in range(8)
    )
    scans = load(paths, {"participants.tsv": table}, label_column="diagnosis")
    assert scans.class_names == ("a", "b")
    assert all(
        row["class"] == "ab"[int(scans.paths[row["path"]][4:6]) % 2] for row in scans.manifest["files"]
    )
    with pytest.raises(
        InputError, match="--label_column group is in no table of the scans; the columns are: age, diagnosis"
    ):
        load(paths, label_column="group")


def test_a_pattern_finds_patients(load):
    paths = [f"{i % 5}-slice{i}.png" for i in range(30)]
    scans = load(paths, patient_pattern=r"^(\d+)-slice")
    assert scans.manifest["patients"]["total"] == 5
    assert "patients: 5 by --patient_pattern" in format_account(scans.manifest)
    with pytest.raises(InputError, match=r"--patient_pattern P\(\.\*\) finds no patient in 0-slice0.png"):
        load(paths, patient_pattern="P(.*)")
    with pytest.raises(InputError, match="is no regular expression"):
        load(paths, patient_pattern="(")


def test_a_pattern_that_never_ends_is_refused(load):
    """It may come with somebody's model."""
    with pytest.raises(InputError, match="takes too long"):
        load([f"{'a' * 60}{i}.png" for i in range(3)], patient_pattern=r"(a|aa)+$")


def test_patients_of_a_hub_data_set(tmp_path):
    rows = {"image": HEADS[:24], "label": ["x", "y"] * 12, "patient_id": [f"P{i // 4}" for i in range(24)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    scans = load_scans(resolution=16, dataset_name=str(tmp_path / "saved"), cache_dir=str(tmp_path / "cache"))
    assert scans.manifest["patients"]["total"] == 6
    assert all(
        len(splits) == 1 for splits in sides(scans, lambda path: int(path.split("/")[1]) // 4).values()
    )


@pytest.mark.parametrize("nothing", ["", " ", "n/a", None])
def test_scans_without_a_patient_in_a_hub_data_set_are_nobodys(tmp_path, nothing):
    rows = {"image": HEADS[:24], "label": ["x", "y"] * 12}
    rows["patient_id"] = [nothing if i < 12 else f"P{i // 4}" for i in range(24)]
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    scans = load_scans(resolution=16, dataset_name=str(tmp_path / "saved"), cache_dir=str(tmp_path / "cache"))
    assert scans.manifest["patients"]["total"] == 3
    assert scans.manifest["patients"]["scans_without"] == 12


def test_that_nobody_knows_the_patients_is_said(load):
    scans = load(PATHS)
    assert scans.manifest["patients"] is None
    assert (
        "no patient is known, so scans of one patient may be in both train and validation"
        in format_account(scans.manifest)
    )
    assert "patient" not in scans.manifest["files"][0]


def test_one_patient_alone_is_refused(load):
    with pytest.raises(
        InputError, match="too few to split off a validation share: give scans of at least two patients"
    ):
        load([f"sub-01/{i}.png" for i in range(8)])


def test_the_only_patient_with_a_class_stays_in_train(load):
    """Of four patients the first has the only scan of a class, beside some of another."""
    table = "file_name,patient_id,label\n" + "".join(
        f"{i}.png,P{i // 6},{'rare' if i == 5 else 'usual'}\n" for i in range(24)
    )
    for seed in range(8):
        scans = load([f"{i}.png" for i in range(24)], {"metadata.csv": table}, seed=seed)
        assert scans.manifest["split"]["train"]["classes"] == {"rare": 1, "usual": 17}


def test_patients_of_whom_none_can_be_spared_are_refused(load):
    paths = [f"{i}.png" for i in range(8)]
    table = "file_name,patient_id,label\n" + "".join(
        f"{i}.png,P{i // 4},{f'of {i // 4}' if i % 4 == 3 else 'usual'}\n" for i in range(8)
    )
    with pytest.raises(
        InputError, match="No patient can be spared for validation, as each is the last with some class: give"
    ):
        load(paths, {"metadata.csv": table})


def test_names_of_patients_are_in_no_manifest(load, tmp_path):
    """Neither those of folders and files, nor of a table, nor of what cannot be read or is left out."""
    planted = [f"MUSTER_ERIKA_{4711 + p}/{i}.png" for p in range(5) for i in range(4)]
    table = "file_name,patient_id\n" + "".join(f"{path},ERIKA^{path[13:17]}\n" for path in planted)
    contents = {
        **dict(zip(planted, HEADS, strict=False)),
        planted[3]: b"\x89PNG",
        "MUSTER_ERIKA_4711/0_mask.png": HEADS[30],
    }
    options = {"on_bad_image": "skip"}
    for tables in ({}, {"metadata.csv": table}):
        manifest = json.dumps(load(contents, tables, **options).manifest["files"])
        whole = {**load(contents, tables, **options).manifest, "source": ""}
        for word in ("MUSTER", "ERIKA", "4711"):
            assert word not in json.dumps(whole)
        assert '"patient 1/0001"' in manifest
    cached = b"".join(file.read_bytes() for file in (tmp_path / "cache").iterdir())
    assert not any(word in cached for word in (b"MUSTER", b"ERIKA", b"4711"))


def test_the_key_stays_with_the_run_for_its_user_alone(load, tmp_path):
    from conftest import tiny, train_alone

    paths = [f"sub-{p:02d}/{i}.png" for p in range(8) for i in range(4)]
    scans = load(paths)
    run = train_alone(
        tiny(
            tmp_path / "run",
            train_data_dir=str(tmp_path / "scans"),
            cache_dir=str(tmp_path / "cache"),
            max_train_steps=2,
        )
    )
    lines = (run / "sources.csv").read_text().splitlines()
    assert lines[0] == "name,path"
    assert dict(line.split(",") for line in lines[1:]) == scans.paths
    assert stat.S_IMODE((run / "sources.csv").stat().st_mode) == 0o600
    for file in run.rglob("*"):
        assert file.name == "sources.csv" or file.is_dir() or b"sub-03" not in file.read_bytes(), file


def test_the_account_overwrites_no_table_of_the_user(load, tmp_path, capsys):
    load([f"sub-{p:02d}/{i}.png" for p in range(8) for i in range(4)])
    (tmp_path / "mine-sources.csv").write_text("mine")
    account = ["data", str(tmp_path / "scans"), "--cache_dir", str(tmp_path / "cache"), "--output"]
    with pytest.raises(SystemExit) as end:
        commands.main([*account, str(tmp_path / "mine.json")])
    assert end.value.code == 2
    assert "mine-sources.csv beside it, which exists; name another file" in capsys.readouterr().err
    assert (tmp_path / "mine-sources.csv").read_text() == "mine"
    for _ in range(2):  # its own are replaced
        commands.main([*account, str(tmp_path / "other.json")])
    assert (tmp_path / "other-sources.csv").read_text().startswith("name,path")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
@pytest.mark.parametrize("kind", ["png", "nii"])
def test_names_that_are_no_utf_8(load, tmp_path, capsys, kind):
    """As Latin-1 of old archives: they are told as they are."""
    files = {
        f"sub-{p:02d}/caf\udce9{p}.{kind}": HEADS[p] if kind == "png" else nifti(head(p), packed=False)
        for p in range(4)
    }
    files["sub-00/d\udce9.png" if kind == "png" else "sub-00/d\udce9.nii"] = b""
    scans = load(files, on_bad_image="skip")
    assert scans.manifest["patients"]["total"] == 4
    options = ["--cache_dir", str(tmp_path / "cache"), "--output", str(tmp_path / "manifest.json")]
    commands.main(["data", str(tmp_path / "scans"), *options])
    assert "sub-00/d" in capsys.readouterr().out
    assert b"sub-01/caf\xe91." in (tmp_path / "manifest-sources.csv").read_bytes()


def test_the_account_is_that_of_the_training(load, tmp_path):
    paths = [f"sub-{p:02d}/{i}.png" for p in range(8) for i in range(4)]
    trained = load(paths).manifest
    manifest, _ = account_of(str(tmp_path / "scans"), cache_dir=str(tmp_path / "cache"))
    assert manifest["content_sha256"] == trained["content_sha256"]
    assert "patients: 8, 7 in train, 1 in validation, 0 in test" in format_account(manifest)
