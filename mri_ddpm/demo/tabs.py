"""The tabs that every model has: sample, and watch."""

from collections.abc import Iterator
from html import escape

import gradio as gr

from mri_ddpm.demo import markup
from mri_ddpm.demo.conditions import QUIET
from mri_ddpm.demo.parts import Gallery, Parts, on_press
from mri_ddpm.demo.refusals import sentences
from mri_ddpm.demo.saving import command_of
from mri_ddpm.demo.streaming import Progress

MOST_IMAGES = 64


def add_sample(parts: Parts) -> None:
    """Images by the settings, each to be saved, and the command that writes the same ones."""
    model, settings = parts.model, parts.settings
    with gr.Row():
        number = gr.Slider(1, MOST_IMAGES, value=8, step=1, label="Number of images", scale=3)
        run = gr.Button("Sample", variant="primary", scale=1)
        stop = gr.Button("Stop", scale=1)
    gallery = Gallery(parts, "samples")
    command = gr.HTML(elem_classes="command")

    def sample(values: dict, request: gr.Request) -> Iterator[tuple]:
        with sentences():
            asked, count, kind = settings.asked(values, request), int(values[number]), values[gallery.kind]
            parts.sessions.of(request).class_label = asked.class_label
            told = model.sample(model.labels(asked.class_label, count), count, asked.options)
            for shown in gallery.fill(told, count, kind, request):
                yield *shown, line(kind, request)

    def line(kind: str, request: gr.Request) -> str:
        session = parts.sessions.of(request)
        if session.samples is None:
            return ""
        written = command_of(model.name, session.class_label, session.samples, kind)
        return f"The same files on the command line: <code>{escape(written)}</code>"

    inputs = {*settings.components, number, gallery.kind}
    on_press(run, stop, sample, inputs, [gallery.status, gallery.pictures, command])
    gallery.kind.change(line, gallery.kind, command, **QUIET)


def add_watch(parts: Parts) -> None:
    """How one image arises."""
    model, settings = parts.model, parts.settings
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
                    parts.sessions.of(request).way = told
                    last = len(told.timesteps) - 1
                    middle = gr.update(maximum=last, value=last // 2, visible=True)
                    yield markup.said("move the slider"), middle, markup.way(told, last // 2)

    def moment(step: int, request: gr.Request) -> str:
        found = parts.sessions.of(request).way
        return markup.way(found, min(int(step), len(found.timesteps) - 1)) if found else ""

    on_press(run, stop, watch, settings.components, [status, step, picture])
    step.change(moment, step, picture, trigger_mode="always_last", queue=False, **QUIET)
