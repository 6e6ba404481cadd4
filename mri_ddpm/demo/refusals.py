"""Refusals, shown in the page as the sentences that they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr

from mri_ddpm.errors import InputError


@contextmanager
def sentences() -> Iterator[None]:
    """Show a refusal in the page, until it is closed; no traceback in the terminal."""
    try:
        yield
    except InputError as error:
        sentence = escape(str(error))
        raise gr.Error(sentence, duration=None, title="That does not work", print_exception=False) from None
