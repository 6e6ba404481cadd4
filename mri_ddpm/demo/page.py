"""The page of one model: what stands where."""

from collections.abc import Iterator
from html import escape

import gradio as gr
import numpy as np

from mri_ddpm.demo import markup
from mri_ddpm.demo.comparing import Comparison, add_compare
from mri_ddpm.demo.inputs import background, canvas, layers_of, painted, read_upload
from mri_ddpm.demo.model import Model, Samples
from mri_ddpm.demo.parts import QUIET, Gallery, Sessions, on_press, sentences
from mri_ddpm.demo.saving import command_of
from mri_ddpm.demo.settings import Settings
from mri_ddpm.demo.streaming import Progress
from mri_ddpm.errors import InputError

SECONDS_KEPT = 300  # of files that Gradio keeps: what a canvas shows
MOST_SAMPLED, MOST_EDITED = 64, 16
RED = "#ff5050"
EDIT_HINT = (
    "Put in a scan, or sample one. Then paint over the part that is to be redrawn, or vary the whole. The settings decide how{such_as}. "
    "A scan that you put in is not kept."
)
PAINTED, VARIED = "sample the painted part anew", "vary the whole scan"


def make_page(
    model: Model, where: dict[str, str | None] | None = None, show_scans: bool = False
) -> gr.Blocks:
    """The page of a model; what that has not, such as classes, the page has not either.

    Args:
        model: which.
        where: its training scans are, as of ``mri-ddpm evaluate``.
        show_scans: whether a visitor may see them.
    """
    sessions, comparison = Sessions(), Comparison(model, where or {}, show_scans)
    keep = (SECONDS_KEPT // 10, SECONDS_KEPT)
    with gr.Blocks(title="Synthetic brain MRI", analytics_enabled=False, delete_cache=keep) as page:
        gr.HTML(markup.BANNER)
        gr.HTML(markup.title(model))
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                settings = Settings(model, sessions)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("Sample"):
                    add_sample(model, settings, sessions)
                with gr.Tab("Watch"):
                    add_watch(model, settings, sessions)
                if model.draws_one_channel:
                    with gr.Tab("Edit"):
                        add_edit(model, settings, sessions)
                if comparison.has_scans or comparison.report:
                    with gr.Tab("Compare"):
                        add_compare(comparison, sessions)
        page.unload(sessions.forget)
    page.queue(max_size=20, api_open=False)
    return page


def add_sample(model: Model, settings: Settings, sessions: Sessions) -> None:
    """Images by the settings, each to be saved, and the command that writes the same ones."""
    with gr.Row():
        number = gr.Slider(1, MOST_SAMPLED, value=8, step=1, label="Number of images", scale=3, min_width=200)
        run = gr.Button("Sample", variant="primary", scale=1, min_width=90)
        stop = gr.Button("Stop", scale=1, min_width=70)
    gallery = Gallery(model, sessions, "samples")
    command = gr.HTML(elem_classes="command")

    def sample(values: dict, request: gr.Request) -> Iterator[tuple]:
        with sentences():
            asked, count, kind = settings.asked(values, request), int(values[number]), values[gallery.kind]
            told = model.sample(model.labels(asked.class_label, count), count, asked.options)
            for shown in gallery.fill(told, count, kind, request):
                sessions.of(request).class_label = asked.class_label
                yield *shown, line(kind, request)

    def line(kind: str, request: gr.Request) -> str:
        session = sessions.of(request)
        if session.samples is None:
            return ""
        written = command_of(model.name, session.class_label, session.samples, kind)
        return f"The same files on the command line: <code>{escape(written)}</code>"

    inputs = {*settings.components, number, gallery.kind}
    on_press(run, stop, sample, inputs, [gallery.status, gallery.pictures, command])
    gallery.kind.change(line, gallery.kind, command, **QUIET)


def add_watch(model: Model, settings: Settings, sessions: Sessions) -> None:
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
        with sentences():
            asked = settings.asked(values, request)
            labels = model.labels(asked.class_label, 1)
            for told in model.watch(labels[0] if labels else None, asked.options):
                if isinstance(told, Progress):
                    yield markup.progress(told), gr.skip(), gr.skip()
                else:
                    sessions.of(request).way = told
                    last = len(told.timesteps) - 1
                    middle = gr.update(maximum=last, value=last // 2, visible=True)
                    yield markup.said("move the slider"), middle, markup.way(told, last // 2)

    def moment(step: int, request: gr.Request) -> str:
        found = sessions.of(request).way
        return markup.way(found, min(int(step), len(found.timesteps) - 1)) if found else ""

    on_press(run, stop, watch, settings.components, [status, step, picture])
    step.change(moment, step, picture, trigger_mode="always_last", queue=False, **QUIET)


def add_edit(model: Model, settings: Settings, sessions: Sessions) -> None:
    """A scan that is put in, a mask that is painted on it, and what the model makes of both."""
    gr.Markdown(EDIT_HINT.format(such_as=", such as the class" if model.class_names else ""))
    with gr.Row():
        put_in = gr.UploadButton("Put in a scan", variant="primary")
        sampled = gr.Button("Sample one instead")
        stop_sampling = gr.Button("Stop")
    told_of_scan = gr.HTML()
    drawing = canvas([RED], label="Scan", visible=False)
    with gr.Row():
        what = gr.Radio([PAINTED, VARIED], value=PAINTED, label="What to do", min_width=260)
        strength = gr.Slider(
            0.05, 1, value=0.2, step=0.05, label="Strength", info="0.2 keeps the head's outline.", visible=False
        )  # fmt: skip
        number = gr.Slider(1, MOST_EDITED, value=4, step=1, label="Number of images")
    with gr.Row():
        run = gr.Button("Change the scan", variant="primary")
        stop = gr.Button("Stop")
    gallery = Gallery(model, sessions, "edited")

    def show(scan: np.ndarray, sentence: str, request: gr.Request) -> tuple:
        sessions.of(request).scan = scan
        shown = background(np.round(scan * 255).astype(np.uint8))
        return markup.said(sentence), gr.update(value=shown, visible=True)

    def upload(path: str, request: gr.Request) -> tuple:
        with sentences():
            scan = read_upload(path, model.side, model.scale, model.fit)
            return show(scan, f"a scan, brought to {model.side}×{model.side} pixels", request)

    def sample_one(values: dict, request: gr.Request) -> Iterator[tuple]:
        with sentences():
            asked = settings.asked(values, request)
            for told in model.sample(model.labels(asked.class_label, 1), 1, asked.options):
                if isinstance(told, Samples):
                    (images,) = told.channels.values()
                    yield show(images[0, 0].numpy(), "a sample of the model", request)
                else:
                    yield markup.progress(told), gr.skip()

    def change(values: dict, request: gr.Request) -> Iterator[tuple]:
        with sentences():
            scan, count = sessions.of(request).scan, int(values[number])
            if scan is None:
                raise InputError("there is no scan; put one in, or sample one.")
            edit = {"image": scan}
            if values[what] == PAINTED:
                edit["mask_image"] = painted(layers_of(values[drawing]), model.side).astype(np.float32)
            else:
                edit["strength"] = float(values[strength])
            asked = settings.asked(values, request, **edit)
            told = model.sample(model.labels(asked.class_label, count), count, asked.options)
            yield from gallery.fill(told, count, values[gallery.kind], request)

    def remove(request: gr.Request) -> tuple:
        sessions.of(request).scan = None
        return "", gr.update(value=None, visible=False)

    put_in.upload(upload, put_in, [told_of_scan, drawing], **QUIET)
    drawing.clear(remove, None, [told_of_scan, drawing], **QUIET)
    on_press(sampled, stop_sampling, sample_one, settings.components, [told_of_scan, drawing])
    what.change(lambda chosen: gr.update(visible=chosen == VARIED), what, strength, queue=False, **QUIET)
    inputs = {*settings.components, what, strength, number, drawing, gallery.kind}
    on_press(run, stop, change, inputs, [gallery.status, gallery.pictures])
