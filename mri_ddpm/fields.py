"""Fields of a dataclass that are flags: with the help text, and what each can be, beside them."""

import dataclasses
import math
from dataclasses import field
from typing import Literal, get_args, get_origin

from transformers import HfArgumentParser

from mri_ddpm.errors import InputError

AUTO = "auto"
BOUNDS = ("least", "most", "over", "under", "needs", "part_of")  # of a field


def number_or_auto(text: str | int) -> int | str:
    """The type of a flag that takes a whole number or "auto"."""
    return AUTO if text == AUTO else int(text)


def about(default, text: str, *, least=None, most=None, over=None, under=None, needs=None, part_of=None):
    """A field with its ``--help`` text, and what it can be.

    Args:
        default: its value where nobody says another.
        text: for ``--help``.
        least: the smallest value; ``None`` and "auto" may always be.
        most: the largest value.
        over: what the value has to be above.
        under: and below.
        needs: the flags without one of which it does nothing, apart by blanks.
        part_of: a flag and the value of that flag without which it does nothing.
    """
    bounds = dict(zip(BOUNDS, (least, most, over, under, (needs or "").split(), part_of), strict=True))
    metadata = {"help": text, **bounds}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def refuse_wrong_number(name: str, value: float, least=None, most=None, over=None, under=None) -> None:
    """Raise an ``InputError`` naming the flag, its value and what it can be."""
    is_in = (least is None or value >= least) and (most is None or value <= most)
    is_in &= (over is None or value > over) and (under is None or value < under)
    if math.isfinite(value) and is_in:
        return
    if not math.isfinite(value):
        wanted = "a number"
    elif under is not None:
        wanted = (
            f"a number between {over} and {under}"
            if least is None
            else f"a number from {least} to under {under}"
        )
    elif most is not None:
        wanted = f"a number from {least} to {most}"
    else:
        wanted = f"{least} or more" if over is None else f"a number over {over}"
    raise InputError(f"--{name} is {value}; take {wanted}.")


def refuse_wrong_fields(options) -> None:
    """Raise an ``InputError`` for a field of a dataclass that is of another kind, out of its bounds, or given without what it needs."""
    for f in dataclasses.fields(options):
        value, kinds = getattr(options, f.name), (f.type, *get_args(f.type))
        usual = f.default if f.default is not dataclasses.MISSING else f.default_factory()
        bounds = {key: f.metadata[key] for key in ("least", "most", "over", "under")}
        for entry in value if isinstance(value, (list, tuple)) else [value]:
            is_number = isinstance(entry, (int, float))
            if not is_number and entry not in (None, AUTO) and {int, float}.intersection(kinds):
                raise InputError(f"--{f.name} is {entry!s:.100}; take a number.")
            if str in kinds and not isinstance(entry, (str, type(None))):
                raise InputError(f"--{f.name} is {entry!s:.100}; take a word.")
            if is_number:
                refuse_wrong_number(f.name, entry, **bounds)
        choices = [get_args(kind) for kind in kinds if get_origin(kind) is Literal]
        if choices and value is not None and value not in choices[0]:
            raise InputError(f"--{f.name} {value} is unknown; take one of: {', '.join(choices[0])}.")
        needed, (other, wanted) = f.metadata["needs"], f.metadata["part_of"] or (None, None)
        if needed and value != usual and not any(getattr(options, name) for name in needed):
            words = " or ".join(f"--{name}" for name in needed)
            raise InputError(f"--{f.name} is given without {words}; add it, or leave --{f.name} out.")
        if other and value != usual and getattr(options, other) != wanted:
            found = getattr(options, other)
            raise InputError(
                f"--{f.name} is of --{other} {wanted}, but --{other} is {'not given' if found is None else found}; leave one of them out."
            )


class FlagParser(HfArgumentParser):
    """Flags of a dataclass, whose fields have more in their metadata than argparse takes."""

    def add_argument(self, *names, **kwargs):
        return super().add_argument(*names, **{key: kwargs[key] for key in kwargs.keys() - BOUNDS})
