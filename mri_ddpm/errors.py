"""The one error a person is meant to read, and how a command ends on it."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence naming it and the way out."""


class SurgeError(InputError):
    """A training whose loss ran away, beyond what the guard could mend."""


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """End a command with the error's one sentence on stderr and exit code 2, and on Ctrl-C with 130; no traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def import_extra(name: str, extra: str) -> ModuleType:
    """Import a package that only an extra of this one brings.

    Raises:
        InputError: when it is missing, or broken.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} cannot be imported ({error}); {with_extra(extra)} brings it.") from error


def with_extra(extra: str) -> str:
    """The command that installs the packages of an extra; of a clone, for this package is on no index."""
    return f'pip install -e ".[{extra}]" in the clone'
