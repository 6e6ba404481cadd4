"""What the tabs of a page share: who visits, refusals, and how a button's work is run, shown and stopped."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape

import gradio as gr
import numpy as np

from mri_ddpm.demo import markup
from mri_ddpm.demo.model import Model, Samples, Way
from mri_ddpm.demo.saving import kinds_of
from mri_ddpm.demo.streaming import Progress
from mri_ddpm.errors import InputError

MOST = 100  # visitors that are remembered; then the one who did nothing for the longest time is forgotten
QUIET = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass
class Session:
    """What a visitor sampled and put in.

    samples, class_label: of the first tab, and the class they were asked for with.
    edited: of the tab that changes scans.
    way: of the tab to watch.
    scan: to be changed, ``(side, side)`` in [0, 1].
    condition: by name, scans in [0, 1] and masks in values of labels.
    """

    samples: Samples | None = None
    class_label: str | None = None
    edited: Samples | None = None
    way: Way | None = None
    scan: np.ndarray | None = None
    condition: dict[str, np.ndarray] = field(default_factory=dict)


class Sessions:
    """All visitors, by the hash that their tab has."""

    def __init__(self):
        self.by_hash: OrderedDict[str, Session] = OrderedDict()
        self.lock = threading.Lock()

    def of(self, request: gr.Request) -> Session:
        """That of the visitor who asks."""
        with self.lock:
            session = self.by_hash.setdefault(request.session_hash, Session())
            self.by_hash.move_to_end(request.session_hash)
            while len(self.by_hash) > MOST:
                self.by_hash.popitem(last=False)
            return session

    def forget(self, request: gr.Request) -> None:
        """Forget one whose tab was closed."""
        with self.lock:
            self.by_hash.pop(request.session_hash, None)


@contextmanager
def sentences() -> Iterator[None]:
    """Show a refusal in the page, until it is closed; no traceback in the terminal."""
    try:
        yield
    except InputError as error:
        sentence = escape(str(error))
        raise gr.Error(sentence, duration=None, title="That does not work", print_exception=False) from None


def on_press(
    run: gr.Button, stop: gr.Button, work: Callable, inputs: set, outputs: list, *, line: str = "model"
) -> None:
    """Let a button run work that yields, first of all for ``outputs[0]`` how far it is, and another one stop it.

    In each line one work computes at a time, and the other visitors' wait.
    """
    event = run.click(
        work, inputs, outputs, show_progress="minimal", show_progress_on=outputs[0], api_visibility="private",
        concurrency_id=line, concurrency_limit=1,
    )  # fmt: skip
    stop.click(lambda: markup.said("stopped"), None, outputs[0], cancels=event, queue=False, **QUIET)


class Gallery:
    """Samples and what they are saved as, made where they are to stand.

    Args:
        model: which made them.
        sessions: of the page.
        keep: the name in a visitor's ``Session`` under which they are kept.
    """

    def __init__(self, model: Model, sessions: Sessions, keep: str):
        self.model, self.sessions, self.keep = model, sessions, keep
        pipeline = model.pipeline
        kinds = kinds_of(masks=any(name in pipeline.mask_labels for name in pipeline.channel_names))
        self.status, self.pictures = gr.HTML(), gr.HTML()
        self.kind = gr.Radio(
            kinds,
            value=kinds[0],
            label="Save as",
            info="Press a picture to save it. Each file says that it is synthetic.",
        )
        self.kind.change(self.again, self.kind, self.pictures, **QUIET)

    def again(self, kind: str, request: gr.Request) -> str:
        """The same samples, to be saved as another kind."""
        samples = getattr(self.sessions.of(request), self.keep)
        return "" if samples is None else markup.gallery(samples, kind, self.model.geometry)

    def fill(
        self, told: Iterator[Progress | Samples], count: int, kind: str, request: gr.Request
    ) -> Iterator[tuple]:
        """Show samples as they come; yields for ``status`` and ``pictures``."""
        session, begun = self.sessions.of(request), False
        for item in told:
            if not begun:  # not earlier, so that a refusal leaves what is there
                begun = True
                setattr(session, self.keep, None)
                yield gr.skip(), markup.pictures_of([], count, max(1, len(self.model.pipeline.channel_names)))
            if isinstance(item, Samples):
                setattr(session, self.keep, item)
                yield gr.skip(), markup.gallery(item, kind, self.model.geometry)
            else:
                yield markup.progress(item), gr.skip()
        yield markup.said(f"{count} images" if count > 1 else "1 image"), gr.skip()
