"""Serve a page, and leave nothing behind when it ends."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from mri_ddpm.demo.inputs import LARGEST
from mri_ddpm.errors import InputError, import_extra

LOOPBACK = "127.0.0.1"


@contextmanager
def quiet_gradio() -> Iterator[None]:
    """Gradio as it has to be before it is imported: it reports nothing to anybody, and its files are gone at the end.

    Raises:
        InputError: when it is missing.
    """
    with tempfile.TemporaryDirectory(prefix="mri-ddpm-demo-") as folder:
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder, HF_HUB_DISABLE_TELEMETRY="1"
        )
        import_extra("gradio", "demo")
        yield


def serve(
    name: str,
    device: str | None = None,
    *,
    where: dict[str, str | None] | None = None,
    show_scans: bool = False,
    server_name: str | None = LOOPBACK,
    port: int | None = None,
    share: bool = False,
) -> None:
    """Open a model's page and serve it until Ctrl-C.

    Args:
        name: run folder, saved pipeline or Hub repository.
        device: where it computes; on a GPU, if there is one, when ``None``.
        where: its training scans are, as of ``mri-ddpm evaluate``, to compare samples with.
        show_scans: whether a visitor may see these.
        server_name: whom it listens to; ``None`` leaves it to the environment, as a Space needs.
        port: the first free one from 7860 on when ``None``.
        share: also open it to the world, by a tunnel of Gradio's.

    Raises:
        InputError: when Gradio is missing, there is no such model, or the port is taken.
    """
    signal.signal(signal.SIGTERM, end)
    with quiet_gradio():
        import gradio as gr

        from mri_ddpm.demo import markup
        from mri_ddpm.demo.model import Model
        from mri_ddpm.demo.page import make_page

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        page = make_page(Model(name, device), where, show_scans)
        plain = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        dark = dict.fromkeys(
            ("block_info_text_color", "block_label_text_color", "block_title_text_color"), "*neutral_700"
        )
        light = {f"{name}_dark": "*neutral_200" for name in dark}
        plain.set(**dark, **light)  # Gradio's own greys are too pale to read
        try:
            _, url, shared = page.launch(
                server_name=server_name, server_port=port, share=share, theme=plain, css=markup.CSS,
                max_file_size=LARGEST, footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False,
                quiet=True, prevent_thread_lock=True,
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"--port {port or '7860 to 7959'} cannot be used: {error}") from error
        print(f"open {url} in a browser; Ctrl-C ends it", flush=True)
        if shared:
            print(f"for everybody who knows the address, for a week: {shared}", flush=True)
        try:
            while True:  # not `block_thread`, which on Ctrl-C waits five seconds where a tab is open
                time.sleep(1)
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)  # what visitors send goes into the folder, so ends before it


def end(signum: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that nothing is left on the disk."""
    sys.exit(128 + signum)
