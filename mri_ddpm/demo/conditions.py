"""The controls for what a model is given beside a class: a scan to be put in, or a mask to be put in or painted."""

import gradio as gr
import numpy as np

from mri_ddpm.demo import markup
from mri_ddpm.demo.canvas import background, canvas, coloured, colours_of, layers_of, painted_over
from mri_ddpm.demo.model import Model
from mri_ddpm.demo.refusals import sentences
from mri_ddpm.demo.sessions import Sessions
from mri_ddpm.demo.uploads import read_mask_upload, read_upload
from mri_ddpm.pipelines.pipeline_mri_ddpm import factor_of, label_values

QUIET = {"show_progress": "hidden", "api_visibility": "private"}


class Conditions:
    """A control for each name of the model's condition, made where they are to stand."""

    def __init__(self, model: Model, sessions: Sessions):
        self.model, self.sessions = model, sessions
        self.canvases: dict[str, gr.ImageEditor] = {}
        for name in model.pipeline.condition_names:
            labels = model.pipeline.mask_labels.get(name)
            if labels:
                self.add_mask(name, labels)
            else:
                self.add_scan(name)

    def add_scan(self, name: str) -> None:
        """A scan to be put in, and what it looks like."""
        put_in = gr.UploadButton(f"Put in {name}")
        seen = gr.HTML()

        def upload(path: str, request: gr.Request) -> str:
            with sentences():
                side = self.model.side // factor_of(name)
                scan = read_upload(path, side, self.model.scale, self.model.fit)
                self.sessions.of(request).condition[name] = scan
                return markup.given(scan, name)

        put_in.upload(upload, put_in, seen, **QUIET)

    def add_mask(self, name: str, labels: tuple[str, ...]) -> None:
        """A canvas to paint labels on, over a mask that may be put in."""
        colours, values = colours_of(len(labels)), label_values(labels)
        put_in = gr.UploadButton(f"Put in {name}")
        nothing = np.zeros((self.model.side, self.model.side), dtype=np.uint8)
        shown = canvas(
            [markup.colour(c) for c in colours], value=background(nothing), label=f"{name}: paint its labels"
        )
        gr.HTML(markup.legend(labels, colours))

        def upload(path: str, request: gr.Request) -> dict:
            with sentences():
                mask = read_mask_upload(path, self.model.side, self.model.fit)
                self.sessions.of(request).condition[name] = mask
                return background(coloured(mask, values))

        put_in.upload(upload, put_in, shown, **QUIET)
        self.canvases[name] = shown

    def read(self, values: dict, request: gr.Request) -> dict[str, np.ndarray]:
        """What is given, ``(H, W)`` by name; empty where nothing is."""
        found = dict(self.sessions.of(request).condition)
        for name, shown in self.canvases.items():
            layers = [layer for layer in layers_of(values[shown]) if layer[..., 3].any()]
            if layers:
                mask = found.get(name, np.zeros((self.model.side, self.model.side), dtype=np.float32))
                found[name] = painted_over(mask, layers, label_values(self.model.pipeline.mask_labels[name]))
        return found
