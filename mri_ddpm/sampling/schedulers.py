"""The schedulers that can be asked for by name, each made from the config of the one the model was trained with.

Timesteps, betas, prediction type and clipping come along in that config: "trailing" timesteps, which begin in noise alone.
All end at sigma 0, the image itself; the noise level of the first timestep, which some solvers stop at by default, is two
grey levels at T = 300. Clipping is done by the pipeline, the same for all.
"""

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from mri_ddpm.errors import InputError
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline

FINAL = {"final_sigmas_type": "zero"}
SCHEDULERS = {
    "ddpm": (DDPMScheduler, {}),  # Ho et al. 2020, algorithm 2
    "ddim": (DDIMScheduler, {}),  # Song et al. 2020, arXiv:2010.02502, without noise
    "dpmsolver++": (  # Lu et al. 2022, arXiv:2211.01095, 2M
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, **FINAL},
    ),
    "dpmsolver++sde": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, **FINAL},
    ),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2, **FINAL}),  # Zhao et al. 2023, arXiv:2302.04867
    "heun": (
        HeunDiscreteScheduler,
        {},
    ),  # Karras et al. 2022, arXiv:2206.00364, algorithm 1; two calls a step
    "euler": (EulerDiscreteScheduler, FINAL),
}


def set_scheduler(pipeline: MRIDDPMPipeline, name: str) -> None:
    """Let a pipeline draw by the scheduler of that name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in SCHEDULERS:
        raise InputError(f"--scheduler {name} is unknown; take one of {', '.join(SCHEDULERS)}.")
    scheduler_class, settings = SCHEDULERS[name]
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **settings)
