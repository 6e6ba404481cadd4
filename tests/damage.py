"""Ways to damage files, each a function of a seed, and what must come of it: a result, or a sentence, soon.

``FUZZ_SEED`` in the environment begins the random damage elsewhere; the number of cases stays.
"""

import faulthandler
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from mri_ddpm.errors import InputError

SEED = int(os.environ.get("FUZZ_SEED", 0))
SECONDS = 60  # for one case, of which most take a hundredth of one
MORE_BYTES = 3 * 2**30  # than the process has when it begins
DEEP = "[" * 100_000 + "]" * 100_000
ODD_VALUES = (
    None, True, False, 0, 1, -1, -7, 2, 10**9, 2**31, 2**63, 10**30, -(10**12), 0.5, 1e-300, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"), "", "x", "1", "nan", "../../etc/passwd", "\0", "\ud800".encode("utf-8", "replace").decode(),
    "é" * 1000, "A" * 100_000, [], [[]], [0], [1, 2, 3], ["linear"] * 1000, [8] * 200, {}, {"a": {}}, [None], [10**12, 10**12],
    ["evil", "Evil"], [float("nan")],
)  # fmt: skip


class Payload:
    """Unpickled freely, it leaves a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def damage_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Flip bits, write over, cut off, put in, take out."""
    data, size = bytearray(content), len(content)
    # Half of the time near one of the ends, where headers and indices are
    at = (
        int(rng.integers(size))
        if rng.random() < 0.5
        else int(rng.integers(min(size, 256))) * rng.choice([1, -1])
    )
    kind = rng.integers(6)
    if kind == 0:
        for place in rng.integers(size, size=rng.integers(1, 9)):
            data[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        data[at] ^= 1 << rng.integers(8)
    elif kind == 2:
        noise = rng.bytes(int(rng.integers(1, 65)))
        data[at : at + len(noise) if at >= 0 or at + len(noise) < 0 else size] = noise
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        data[at:at] = rng.bytes(int(rng.integers(1, 65)))
    else:
        del data[at : at + int(rng.integers(1, 65))]
    return bytes(data)


def damage_json(rng: np.random.Generator, content: bytes) -> bytes:
    """Set a value to another, delete it, give it twice, nest it; or spoil the text as a whole."""
    value = json.loads(content)
    kind = rng.integers(10)
    if kind == 0:
        whole = [
            b"null",
            b"[]",
            b'"x"',
            b"{}",
            b"1e999",
            b"-" * 9,
            DEEP.encode(),
            b'{"a":' * 100_000,
            b"\xff\xfe{}",
            b"9" * 10_000,
        ]
        return whole[rng.integers(len(whole))]
    places = list(walk(value))
    holder, key = places[rng.integers(len(places))]
    if kind == 1:
        del holder[key]
    elif kind == 2 and isinstance(holder, dict):
        twice = json.dumps(key) + ": " + json.dumps(ODD_VALUES[rng.integers(len(ODD_VALUES))])
        return json.dumps(value).replace("{", "{" + twice + ", ", 1).encode()
    elif kind == 3:
        holder[key] = "DEEP"
        return json.dumps(value).replace('"DEEP"', DEEP).encode()
    elif kind == 4:
        return json.dumps(value, ensure_ascii=False).encode("utf-16" if rng.random() < 0.5 else "utf-8")[1:]
    else:
        holder[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    return json.dumps(value).encode()


def walk(value):
    """Every place in nested lists and dicts, as (holder, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from walk(inner)


def damage_header(rng: np.random.Generator, content: bytes) -> bytes:
    """A safetensors header that lies: of its length, of types, shapes and places."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    kind = rng.integers(4)
    if kind == 0:
        lengths = [0, 1, 7, size - 1, size + 1, len(content), 2**31, 2**40, 2**63, 2**64 - 1]
        return struct.pack("<Q", lengths[rng.integers(len(lengths))]) + content[8:]
    name = sorted(header)[rng.integers(len(header))]
    if name == "__metadata__" or kind == 1:
        header[name] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    else:
        key = ["dtype", "shape", "data_offsets"][rng.integers(3)]
        odd = {
            "dtype": ["F64", "I8", "BOOL", "F8_E4M3", "U64", "C64", "evil", None],
            "shape": [[], [0], [2**62, 4], [2**63], [-1], [10**12], "many", None],
            "data_offsets": [[0, 2**62], [2**63, 2**64 - 1], [-4, 4], [8, 4], [0, 0], [0, len(body)], [], None],
        }[key]  # fmt: skip
        header[name][key] = odd[rng.integers(len(odd))]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def other_contents(marker: Path) -> dict[str, bytes | None]:
    """What may stand in a file's place; ``None`` is for a folder."""
    saved, picture = io.BytesIO(), io.BytesIO()
    torch.save({"conv_in.weight": torch.zeros(3), "evil": Payload(marker)}, saved)
    Image.new("L", (9, 9)).save(picture, "PNG")
    return {
        "nothing": b"",
        "a folder": None,
        "zeros": bytes(4096),
        "noise": np.random.default_rng(0).bytes(4096),
        "text": b"hello\n" * 50,
        "a picture": picture.getvalue(),
        "an empty zip": b"PK\5\6" + bytes(18),
        "a pickle": pickle.dumps(Payload(marker)),
        "a pickle of torch": saved.getvalue(),
        "an old pickle": pickle.dumps(Payload(marker), protocol=0),
    }


def put(path: Path, content: bytes | None) -> None:
    """Write a file anew, or a folder in its place."""
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


class TooSlow(BaseException):
    """No ``except Exception`` may swallow it."""


@contextmanager
def limits():
    """Memory that a lying header cannot claim, and a word of where the interpreter was if it should crash."""
    faulthandler.dump_traceback_later(600, exit=True)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MORE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def refused_or_fine(case: str, *names: str, kinds=(InputError, ValueError, OSError)):
    """What stands inside works, or raises a sentence that holds one of ``names``, and all that soon."""

    def too_slow(*_):
        raise TooSlow(f"{case} took more than {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    try:
        yield
    except kinds as error:
        message = str(error)
        if message.count("\n") > 2 or len(message) > 1500 or not any(name in message for name in names):
            raise AssertionError(f"{case}: not a sentence that names the file: {message[:1500]}") from error
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {str(error)[:500]}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def in_place_of(path: Path, content: bytes | None):
    """A file with another content, or a folder of its name, for a while."""
    before = path.read_bytes()
    put(path, content)
    try:
        yield
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(before)


def random_damage(name: str, content: bytes, number: int, json_share: float = 0.6):
    """``number`` damaged copies of a file, by its kind."""
    for seed in range(SEED, SEED + number):
        rng = np.random.default_rng([seed, *name.encode()])
        damage = damage_bytes
        if name.endswith(".json") and rng.random() < json_share:
            damage = damage_json
        elif name.endswith(".safetensors") and rng.random() < 0.4:
            damage = damage_header
        yield seed, damage(rng, content)
