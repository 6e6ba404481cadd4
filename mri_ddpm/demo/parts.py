"""What the tabs of a page share: the model, who visits, and how a button's work is run, shown and stopped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gradio as gr

from mri_ddpm.demo import markup
from mri_ddpm.demo.conditions import QUIET
from mri_ddpm.demo.model import Model, Samples
from mri_ddpm.demo.saving import kinds_of
from mri_ddpm.demo.sessions import Sessions
from mri_ddpm.demo.settings import Settings
from mri_ddpm.demo.streaming import Progress


@dataclass(frozen=True)
class Parts:
    """What a tab is made with."""

    model: Model
    sessions: Sessions
    settings: Settings


def on_press(
    run: gr.Button, stop: gr.Button | None, work: Callable, inputs: set, outputs: list, *, line: str = "model"
) -> None:
    """Let a button run work that yields, first of all for ``outputs[0]`` how far it is, and another one stop it.

    In each line one work computes at a time, and the other visitors' wait.
    """
    event = run.click(
        work, inputs, outputs, show_progress="minimal", show_progress_on=outputs[0], api_visibility="private",
        concurrency_id=line, concurrency_limit=1,
    )  # fmt: skip
    if stop:
        stop.click(lambda: markup.said("stopped"), None, outputs[0], cancels=event, queue=False, **QUIET)


class Gallery:
    """Samples and what they are saved as, made where they are to stand.

    Args:
        parts: of the page.
        keep: the name in a visitor's ``Session`` under which they are kept.
    """

    def __init__(self, parts: Parts, keep: str):
        self.parts, self.keep = parts, keep
        pipeline = parts.model.pipeline
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
        samples = getattr(self.parts.sessions.of(request), self.keep)
        return "" if samples is None else markup.gallery(samples, kind, self.parts.model.geometry)

    def fill(
        self, told: Iterator[Progress | Samples], count: int, kind: str, request: gr.Request
    ) -> Iterator[tuple]:
        """Show samples as they come; yields for ``status`` and ``pictures``."""
        session = self.parts.sessions.of(request)
        setattr(session, self.keep, None)
        yield (
            markup.said("waiting for the first step"),
            f'<ul class="pictures">{markup.waiting(count)}</ul>',
        )
        for item in told:
            if isinstance(item, Samples):
                setattr(session, self.keep, item)
                yield gr.skip(), markup.gallery(item, kind, self.parts.model.geometry)
            else:
                yield markup.progress(item), gr.skip()
        yield markup.said(f"{count} images" if count > 1 else "1 image"), gr.skip()
