"""The account of the published reference set, where a copy of it is at hand."""

import csv
from collections import Counter

import pytest
from conftest import REFERENCE_SET

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def account(reference_scans):
    return reference_scans(32).manifest


@pytest.fixture(scope="module")
def published():
    """{path: sha256 of the file as published}, from before it was made smaller."""
    with open(REFERENCE_SET.parent / "manifest.csv", newline="") as table:
        rows = csv.DictReader(table)
        return {f"{row['split']}/{row['class']}/{row['file']}": row["original_sha256"] for row in rows}


def test_the_published_copies_are_found(account, published):
    """As published, 237 files are copies to the byte, and 88 testing files show training scans."""
    files = {row["path"]: row for row in account["files"]}
    assert files.keys() == published.keys()
    assert len(published) == 3264
    assert len(published) - len(set(published.values())) == 237
    group_of = {}
    for path, sha256 in published.items():
        assert files[path]["group"] == group_of.setdefault(sha256, files[path]["group"])
    trained = {sha256 for path, sha256 in published.items() if path.startswith("Training")}
    leaked = [path for path, sha256 in published.items() if path.startswith("Testing") and sha256 in trained]
    assert len(leaked) == 88
    assert {files[path]["split"] for path in leaked} == {"leak"}
    assert {files[path]["class"] for path in leaked} == {"no_tumor"}


def test_the_account_of_the_smaller_files(account):
    """Made smaller, files that differed in bytes but not in pixels are identical: 394 copies, 251 leaks."""
    sha256 = {
        part: [r["sha256"] for r in account["files"] if r["part"] == part] for part in ("training", "testing")
    }
    everything = sha256["training"] + sha256["testing"]
    byte_identical, near_identical = (
        account["repeats"]["byte_identical"],
        account["repeats"]["near_identical"],
    )
    assert byte_identical["total"] == len(everything) - len(set(everything)) == 394
    assert (
        account["leaks"]["byte_identical"]
        == sum(s in set(sha256["training"]) for s in sha256["testing"])
        == 251
    )
    # All 57 groups that hold these were looked at: each shows one picture.
    assert near_identical["total"] == 72
    assert account["leaks"]["near_identical"] == 11
    # Of mirror images the nearest pairs were looked at: 74 bits and more apart, and none is a copy.
    assert account["repeats"]["mirrored"]["total"] == account["leaks"]["mirrored"] == 0
    assert account["repeats"]["label_conflicts"] == 3
    assert account["unreadable"] == []
    assert Counter(row["split"] for row in account["files"]) == {
        "train": 2438,
        "validation": 272,
        "test": 88,
        "repeat": 204,
        "leak": 262,
    }
