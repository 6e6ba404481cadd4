"""``metrics.jsonl``, as a training writes it and as a resumed one finds it."""

import json
from collections.abc import Sequence
from pathlib import Path

from mri_ddpm.files import read_json_lines, sync, write_json_lines


class Metrics:
    """``metrics.jsonl``: one line an optimizer step with the training loss, and one a validation.

    Lines past ``step`` are dropped at the start: they belong to steps that a resumed run takes again.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``."""
        self.rows = [row for row in read_json_lines(self.path) if row["step"] <= step]
        write_json_lines(self.path, self.rows)

    def append(self, rows: Sequence[dict]) -> None:
        """Add rows, each with its ``step``."""
        self.rows += rows
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def sync(self) -> None:
        """Bring the rows to the disk, as is due before a checkpoint that follows them."""
        sync(self.path)
