"""What is known of files that have not changed since they were read: their hash, and the header of a DICOM file.

A small SQLite file in the cache folder. Paths and identifiers are kept as keyed hashes; the key lies in the same file and
nowhere else, so that no name of a patient can be read from it.
"""

import contextlib
import hashlib
import json
import secrets
import sqlite3
from functools import cached_property
from pathlib import Path

NAME = "index.sqlite"
WAIT_SECONDS = 30  # for another process that writes


class Index:
    """Remembers a JSON value by a stamp. One that cannot be opened or written remembers nothing, and nobody notices.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._new = folder / NAME, {}

    @cached_property
    def _kept(self) -> tuple[bytes, dict[str, str]]:
        """The key, and what is known; made when the first is asked for."""
        key, known = secrets.token_bytes(32), {}
        with contextlib.suppress(OSError, sqlite3.Error), self._open() as table:
            table.execute("CREATE TABLE IF NOT EXISTS keys (key BLOB)")
            table.execute("CREATE TABLE IF NOT EXISTS known (stamp BLOB PRIMARY KEY, value TEXT)")
            table.execute("INSERT INTO keys SELECT ? WHERE NOT EXISTS (SELECT 1 FROM keys)", [key])
            key = table.execute("SELECT key FROM keys").fetchone()[0]
            known = dict(table.execute("SELECT stamp, value FROM known"))
        return key, known

    def hidden(self, text: str) -> str:
        """A word that stands for another: always the same one, from which nobody without the key finds the other."""
        content = text.encode(errors="surrogatepass")  # names of files may be no UTF-8
        return hashlib.blake2b(content, key=self._kept[0], digest_size=16).hexdigest()

    def get(self, kind: str, stamp: str | None):
        """What is remembered of a file; None where it is new, or has changed."""
        value = None if stamp is None else self._kept[1].get(self.hidden(f"{kind} {stamp}"))
        with contextlib.suppress(ValueError):
            return None if value is None else json.loads(value)

    def put(self, kind: str, stamp: str | None, value) -> None:
        """Remember a value, from the next `save` on."""
        if stamp is not None:
            self._new[self.hidden(f"{kind} {stamp}")] = json.dumps(value)

    def save(self) -> None:
        """Write what is new."""
        rows, self._new = list(self._new.items()), {}
        if rows:
            self._kept[1].update(rows)
            with contextlib.suppress(OSError, sqlite3.Error), self._open() as table:
                table.executemany("INSERT OR REPLACE INTO known VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _open(self):
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self._file, timeout=WAIT_SECONDS)) as table, table:
            yield table
