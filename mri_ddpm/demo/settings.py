"""The controls that say how images are sampled and what they are given; none for what the model has not."""

from dataclasses import dataclass

import gradio as gr
import numpy as np

from mri_ddpm.demo import markup
from mri_ddpm.demo.inputs import (
    background,
    canvas,
    coloured,
    colours_of,
    layers_of,
    painted_over,
    read_mask_upload,
    read_upload,
)
from mri_ddpm.demo.model import Model
from mri_ddpm.demo.parts import QUIET, Sessions, sentences
from mri_ddpm.errors import InputError
from mri_ddpm.pipelines.pipeline_mri_ddpm import factor_of, label_values
from mri_ddpm.sampling import SCHEDULERS, SamplingOptions

ALL = "all in turn"
SOLVER, STEPS = "dpmsolver++", 20  # as good as the whole chain, in a fifteenth of the time (docs/sample.md)


@dataclass(frozen=True)
class Asked:
    """What the controls say: a class, or ``None`` for all in turn, and the options."""

    class_label: str | None
    options: SamplingOptions


class Settings:
    """The controls, made where they are to stand; ``components`` are the inputs of every event that samples."""

    def __init__(self, model: Model, sessions: Sessions):
        self.model, self.class_label, self.guidance = model, None, None
        if model.class_names:
            self.class_label = gr.Dropdown(
                [ALL, *model.class_names], value=ALL, label="Class", filterable=False
            )
        self.seed = gr.Number(
            0, precision=0, minimum=0, label="Seed", info="Image i is sampled from seed + i."
        )
        with gr.Accordion("Solver, steps and guidance", open=False):
            self.solver = gr.Dropdown(list(SCHEDULERS), value=SOLVER, label="Solver", filterable=False)
            steps = min(STEPS, model.timesteps)
            self.steps = gr.Slider(
                1,
                model.timesteps,
                value=steps,
                step=1,
                label="Steps",
                info="More take longer; ddpm needs all.",
            )
            if model.can_be_guided:
                self.guidance = gr.Slider(
                    1,
                    8,
                    value=1,
                    step=0.1,
                    label="Guidance",
                    info=f"How closely an image follows {model.guided_by}; 1 is none.",
                )

        self.conditions = Conditions(model, sessions)

    @property
    def components(self) -> set[gr.components.Component]:
        """All controls that are there."""
        every = (self.class_label, self.seed, self.solver, self.steps, self.guidance)
        there = {component for component in every if component is not None}
        return there | {*self.conditions.canvases.values()}

    def asked(self, values: dict, request: gr.Request, **edit) -> Asked:
        """What the values of the controls ask for, with what is given beside them.

        Raises:
            InputError: for an empty field.
        """
        if values[self.seed] is None:
            raise InputError("the seed is empty; give a whole number, such as 0.")
        condition = self.conditions.read(values, request)
        if condition:
            edit["condition"] = condition
        label = values[self.class_label] if self.class_label else None
        by_class_alone = condition and not self.model.can_be_guided_by_condition
        options = SamplingOptions(
            scheduler=values[self.solver],
            num_inference_steps=int(values[self.steps]),
            guidance_scale=float(values[self.guidance]) if self.guidance else 1.0,
            condition_guidance_scale=1.0 if by_class_alone else None,
            seed=int(values[self.seed]),
            edit=edit,
        )
        return Asked(None if label == ALL else label, options)


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
        put_in, take_out = self.buttons(name)
        seen = gr.HTML(self.needed(name))

        def upload(path: str, request: gr.Request) -> str:
            with sentences():
                side = self.model.side // factor_of(name)
                scan = read_upload(path, side, self.model.scale, self.model.fit)
                self.sessions.of(request).condition[name] = scan
                return markup.given(scan, name)

        def remove(request: gr.Request) -> str:
            self.sessions.of(request).condition.pop(name, None)
            return self.needed(name)

        put_in.upload(upload, put_in, seen, **QUIET)
        take_out.click(remove, None, seen, **QUIET)

    def add_mask(self, name: str, labels: tuple[str, ...]) -> None:
        """A canvas to paint labels on, over a mask that may be put in."""
        colours, values = colours_of(len(labels)), label_values(labels)
        put_in, take_out = self.buttons(name)
        nothing = background(np.zeros((self.model.side, self.model.side), dtype=np.uint8))
        shown = canvas([markup.colour(c) for c in colours], value=nothing, label=name)
        gr.HTML(markup.legend(labels, colours) + self.needed(name))

        def upload(path: str, request: gr.Request) -> dict:
            with sentences():
                mask = read_mask_upload(path, self.model.side, self.model.fit)
                self.sessions.of(request).condition[name] = mask
                return background(coloured(mask, values))

        def remove(request: gr.Request) -> dict:
            self.sessions.of(request).condition.pop(name, None)
            return nothing

        put_in.upload(upload, put_in, shown, **QUIET)
        take_out.click(remove, None, shown, **QUIET)
        shown.clear(remove, None, shown, **QUIET)
        self.canvases[name] = shown

    def buttons(self, name: str) -> tuple[gr.UploadButton, gr.Button]:
        """To put a picture in, and to take it out again."""
        with gr.Row():
            put_in = gr.UploadButton(f"Put in {name}", min_width=120)
            take_out = gr.Button(f"Remove {name}", min_width=120)
        return put_in, take_out

    def needed(self, name: str) -> str:
        """A sentence where the model does nothing without it."""
        if self.model.can_be_guided_by_condition:
            return ""
        return markup.said(f"This model needs {name}.")

    def read(self, values: dict, request: gr.Request) -> dict[str, np.ndarray]:
        """What is given, ``(H, W)`` by name; empty where nothing is."""
        found = dict(self.sessions.of(request).condition)
        for name, shown in self.canvases.items():
            layers = [layer for layer in layers_of(values[shown]) if layer[..., 3].any()]
            if layers:
                mask = found.get(name, np.zeros((self.model.side, self.model.side), dtype=np.float32))
                found[name] = painted_over(mask, layers, label_values(self.model.pipeline.mask_labels[name]))
        return found
