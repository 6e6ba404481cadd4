"""The controls that say how images are sampled; a control for what the model has not is not there."""

from dataclasses import dataclass

import gradio as gr

from mri_ddpm.demo.conditions import Conditions
from mri_ddpm.demo.model import Model
from mri_ddpm.demo.sessions import Sessions
from mri_ddpm.errors import InputError
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
        self.class_label = self.guidance = None
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
                    info="How closely an image follows its class; 1 is none.",
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
        options = SamplingOptions(
            scheduler=values[self.solver],
            num_inference_steps=int(values[self.steps]),
            guidance_scale=float(values[self.guidance]) if self.guidance else 1.0,
            seed=int(values[self.seed]),
            edit=edit,
        )
        return Asked(None if label == ALL else label, options)
