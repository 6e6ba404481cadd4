"""The page: controls, tabs and what happens when a button is pressed."""

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr

from mri_ddpm.demo import markup
from mri_ddpm.demo.model import Model, Samples, Way
from mri_ddpm.demo.saving import command_of, kinds_of
from mri_ddpm.demo.sessions import Sessions
from mri_ddpm.demo.settings import Settings
from mri_ddpm.demo.streaming import Progress
from mri_ddpm.errors import InputError

MOST_IMAGES = 64
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one request computes, the others wait in line
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
SECONDS_KEPT = 300  # of files that Gradio keeps: what an editor shows


@contextmanager
def sentences() -> Iterator[None]:
    """Show a refusal in the page."""
    try:
        yield
    except InputError as error:
        raise gr.Error(
            escape(str(error)), duration=None, title="That does not work", print_exception=False
        ) from None


class Page:
    """One model's page.

    Args:
        model: what it shows; what that has not, such as classes, the page has not either.
    """

    def __init__(self, model: Model):
        self.model, self.sessions = model, Sessions()
        masks = any(name in model.pipeline.mask_labels for name in model.pipeline.channel_names)
        self.kinds = kinds_of(masks)
        keep = (SECONDS_KEPT // 10, SECONDS_KEPT)
        with gr.Blocks(
            title="Synthetic brain MRI", analytics_enabled=False, delete_cache=keep
        ) as self.blocks:
            gr.HTML(markup.BANNER)
            gr.Markdown(self.title())
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self.settings = Settings(model)
                with gr.Column(scale=3, min_width=300), gr.Tabs():
                    with gr.Tab("Sample"):
                        self.add_sample()
                    with gr.Tab("Watch"):
                        self.add_watch()
            self.blocks.unload(self.sessions.forget)
        self.blocks.queue(max_size=20, api_open=False)

    def title(self) -> str:
        """The model's name, and what it draws."""
        pipeline = self.model.pipeline
        drawn = f" It draws {', '.join(pipeline.channel_names)}." if pipeline.channel_names else ""
        return f"# Synthetic brain MRI\n\nModel `{self.model.facts['model']}`, {self.model.side}×{self.model.side} pixels.{drawn}"

    def add_sample(self) -> None:
        """Images by the settings, each to be saved."""
        with gr.Row():
            number = gr.Slider(1, MOST_IMAGES, value=8, step=1, label="Number of images", scale=3)
            run = gr.Button("Sample", variant="primary", scale=1)
            stop = gr.Button("Stop", scale=1)
        status, gallery = gr.HTML(), gr.HTML(label="Samples")
        kind = gr.Radio(
            self.kinds,
            value=self.kinds[0],
            label="Save as",
            info="Press a picture to save it. Each file says that it is synthetic.",
        )
        command = gr.HTML(elem_classes="command")

        def sample(values: dict, request: gr.Request) -> Iterator[tuple]:
            session = self.sessions.of(request)
            with sentences():
                asked, count = self.settings.asked(values), int(values[number])
                session.samples, session.class_label = None, asked.class_label
                labels = self.model.labels(asked.class_label, count)
                yield (
                    markup.said("waiting for the first step"),
                    f'<ul class="pictures">{markup.waiting(count)}</ul>',
                    "",
                )
                for told in self.model.sample(labels, count, asked.options):
                    if isinstance(told, Samples):
                        session.samples = told
                        yield gr.skip(), *shown(values[kind], request)
                    else:
                        yield markup.progress(told), gr.skip(), gr.skip()
                yield markup.said(f"{count} images"), gr.skip(), gr.skip()

        def shown(kind: str, request: gr.Request) -> tuple[str, str]:
            session = self.sessions.of(request)
            if session.samples is None:
                return "", ""
            line = command_of(self.model.name, session.class_label, session.samples, kind)
            return (
                markup.gallery(session.samples, kind, self.model.geometry),
                f"The same files on the command line: <code>{escape(line)}</code>",
            )

        inputs = {*self.settings.components, number, kind}
        event = run.click(
            sample,
            inputs,
            [status, gallery, command],
            show_progress="minimal",
            show_progress_on=status,
            api_visibility="private",
            **MODEL,
        )
        stop.click(lambda: markup.said("stopped"), None, status, cancels=event, queue=False, **QUIET)
        kind.change(shown, kind, [gallery, command], **QUIET)

    def add_watch(self) -> None:
        """How one image arises."""
        with gr.Row():
            run = gr.Button("Sample one and watch", variant="primary")
            stop = gr.Button("Stop")
        status = gr.HTML()
        step = gr.Slider(
            0, 1, value=0, step=1, label="Step", info="From noise, on the left, to the image.", visible=False
        )
        picture = gr.HTML()

        def watch(values: dict, request: gr.Request) -> Iterator[tuple]:
            session = self.sessions.of(request)
            with sentences():
                asked = self.settings.asked(values)
                labels = self.model.labels(asked.class_label, 1)
                for told in self.model.watch(labels[0] if labels else None, asked.options):
                    if isinstance(told, Progress):
                        yield markup.progress(told), gr.skip(), gr.skip()
                    else:
                        session.way = told
                        last = len(told.timesteps) - 1
                        middle = gr.update(maximum=last, value=last // 2, visible=True)
                        yield markup.said("move the slider"), middle, markup.way(told, last // 2)

        def moment(step: int, request: gr.Request) -> str:
            found: Way | None = self.sessions.of(request).way
            return markup.way(found, min(int(step), len(found.timesteps) - 1)) if found else ""

        event = run.click(
            watch,
            self.settings.components,
            [status, step, picture],
            show_progress="minimal",
            show_progress_on=status,
            api_visibility="private",
            **MODEL,
        )
        stop.click(lambda: markup.said("stopped"), None, status, cancels=event, queue=False, **QUIET)
        step.change(moment, step, picture, trigger_mode="always_last", queue=False, **QUIET)
