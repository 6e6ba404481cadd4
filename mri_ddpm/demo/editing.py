"""The tab that changes a scan: a painted part is sampled anew, or the whole is varied."""

from collections.abc import Iterator

import gradio as gr
import numpy as np

from mri_ddpm.demo import markup
from mri_ddpm.demo.canvas import background, canvas, layers_of, painted
from mri_ddpm.demo.conditions import QUIET
from mri_ddpm.demo.model import Samples
from mri_ddpm.demo.parts import Gallery, Parts, on_press
from mri_ddpm.demo.refusals import sentences
from mri_ddpm.demo.uploads import read_upload
from mri_ddpm.errors import InputError

MOST_IMAGES = 16
PAINTED, VARIED = "sample the painted part anew", "vary the whole scan"


def add_edit(parts: Parts) -> None:
    """A scan that is put in, a mask that is painted on it, and what the model makes of both."""
    model, settings, sessions = parts.model, parts.settings, parts.sessions
    gr.Markdown("Put in a scan, or sample one. A scan that you put in is not kept.")
    with gr.Row():
        put_in = gr.UploadButton("Put in a scan", variant="primary")
        sampled = gr.Button("Sample one instead")
    told_of_scan = gr.HTML()
    drawing = canvas(["#ff5050"], label="Paint over the part to sample anew", visible=False)
    with gr.Row():
        what = gr.Radio([PAINTED, VARIED], value=PAINTED, label="What to do")
        strength = gr.Slider(
            0.05,
            1,
            value=0.2,
            step=0.05,
            label="Strength",
            info="0.2 keeps the head's outline.",
            visible=False,
        )
        number = gr.Slider(1, MOST_IMAGES, value=4, step=1, label="Number of images")
    with gr.Row():
        run = gr.Button("Change the scan", variant="primary")
        stop = gr.Button("Stop")
    gallery = Gallery(parts, "edited")

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

    put_in.upload(upload, put_in, [told_of_scan, drawing], **QUIET)
    on_press(sampled, None, sample_one, settings.components, [told_of_scan, drawing])
    what.change(lambda chosen: gr.update(visible=chosen == VARIED), what, strength, queue=False, **QUIET)
    inputs = {*settings.components, what, strength, number, drawing, gallery.kind}
    on_press(run, stop, change, inputs, [gallery.status, gallery.pictures])
