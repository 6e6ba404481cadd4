"""A table beside the scans that says of each its patient, class, contrast and part, as `imagefolder` of datasets has it.

`metadata.csv`, `.tsv` or `.jsonl`: a line a file, `file_name` relative to the table's folder. `participants.tsv` of BIDS: a
line a patient.
"""

import csv
import io
import json
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mri_ddpm.errors import InputError

from .contents import Content, Contents

TABLES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
PARTICIPANTS = "participants.tsv"
FILE, PATIENTS = "file_name", ("patient_id", "subject_id", "participant_id")
USUAL_LABEL = "label"  # taken where it is there; any other column has to be asked for
_EMPTY = ("", "n/a")
_NOTHING = ("nan", "none", "null")  # as programs write it; a class may be called so
_NO_CLASSES = (FILE, *PATIENTS, "split", "contrast")


@dataclass(frozen=True)
class Metadata:
    """What the tables of a source say. Values are words; what is empty or `n/a` is left out. Columns are in lower case.

    names: of the tables, relative to the source; () where there is none.
    of_file: {file: {column: value}} by the file's path in the source.
    of_patient: the same by patient, without `sub-`, from `participants.tsv`.
    """

    names: tuple[str, ...] = ()
    of_file: dict[str, dict[str, str]] = field(default_factory=dict)
    of_patient: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def columns(self) -> set[str]:
        """All that any line has a value for."""
        return {name for rows in (self.of_file, self.of_patient) for row in rows.values() for name in row}

    @property
    def about_files(self) -> bool:
        """Whether there is a table with a line a file."""
        return any(PurePosixPath(name).name in TABLES for name in self.names)

    def patient(self, path: str) -> str | None:
        """The patient of a file; None where no line says it."""
        row = self.of_file.get(path, {})
        return next((row[name] for name in PATIENTS if name in row), None)

    def value(self, path: str, patient: str | None, column: str) -> str | None:
        """The value of a file, or else of its patient, in a column of any case; None where no line says it."""
        column = column.lower()
        of_patient = self.of_patient.get((patient or "").removeprefix("sub-"), {})
        return self.of_file.get(path, {}).get(column, of_patient.get(column))


def read_metadata(contents: Contents) -> Metadata:
    """Read all tables among the files of a source.

    Raises `InputError`, naming the table and the line, for one that cannot be read or has no column that it needs.
    """
    names, of_file, of_patient = [], {}, {}
    for path in sorted(contents, key=str):
        if path.name in TABLES:
            for line, row in _rows(path, contents[path]):
                if not row.get(FILE):
                    raise InputError(
                        f"{path}, line {line}, has no {FILE}; give each line the file that it is about."
                    )
                file = str(path.parent / _composed(row[FILE].replace("\\", "/")))
                if of_file.setdefault(file, row) != row:
                    raise InputError(
                        f"{path}, line {line}, says something else of {row[FILE]} than a line before; keep one."
                    )
        elif path.name == PARTICIPANTS:
            for line, row in _rows(path, contents[path]):
                if not row.get("participant_id"):
                    raise InputError(
                        f"{path}, line {line}, has no participant_id; give it one, or take the table out."
                    )
                of_patient[row["participant_id"].removeprefix("sub-")] = row
        else:
            continue
        names.append(str(path))
    return Metadata(tuple(names), of_file, of_patient)


def _rows(path: PurePosixPath, content: Content) -> list[tuple[int, dict[str, str]]]:
    """The lines of a table with their numbers; empty values are left out, and names of columns are in lower case."""
    try:
        text = content.read().decode("utf-8-sig")
        if path.suffix == ".jsonl":
            found = [(n, json.loads(line)) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
            if not all(isinstance(row, dict) for _, row in found):
                raise ValueError("a line is no object")
        else:
            head = text.partition("\n")[0]
            comma = ";" if ";" in head and "," not in head else ","  # as spreadsheets write in some languages
            delimiter = "\t" if path.suffix == ".tsv" else comma
            table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            names = [_composed(name).lower() for name in table.fieldnames or ()]
            if repeated := [name for name in names if name and names.count(name) > 1]:
                raise ValueError(f"the column {repeated[0]} is there twice")
            found = [(table.line_num, row) for row in table if any(row.values())]
            if any(None in row for _, row in found):
                raise ValueError("a line has more fields than the first")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not written in UTF-8; save it anew as CSV UTF-8.") from None
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); mend it, or take it out.") from None
    return [
        (
            line,
            {
                column: word
                for name, value in row.items()
                if (word := word_in(column := _composed(name).lower(), value)) is not None
            },
        )
        for line, row in found
    ]


def word_in(column: str, value) -> str | None:
    """The value of a column as a word; None where it is empty, or says that there is nothing."""
    word = _composed("" if value is None else str(value))
    empty = (*_EMPTY, *_NOTHING) if column in _NO_CLASSES else _EMPTY
    return None if word.lower() in empty else word


def _composed(text: str) -> str:
    """Without blanks around it, in the form of Unicode (NFC) that names of files are compared in."""
    return unicodedata.normalize("NFC", text.strip())
