"""The schedulers that can be asked for by name. Each is made from the config of the one the model was trained with.

That config holds betas, prediction type, clipping and the timesteps' spacing. Timesteps are "trailing": they begin in noise
alone. All schedulers end at sigma 0, the image itself. By default some solvers stop at the noise level of the first timestep,
which is two grey levels at T = 300. The pipeline clips, the same for all.
"""

import inspect

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from mri_ddpm.errors import InputError
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMBasePipeline

# Given to each that knows them, so that nothing is left of the one before: diffusers hands all settings on
PLAIN = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}
SCHEDULERS = {
    "ddpm": (DDPMScheduler, {}),  # Ho et al. 2020, algorithm 2
    "ddim": (DDIMScheduler, {}),  # Song et al. 2020, arXiv:2010.02502, without noise
    "dpmsolver++": (DPMSolverMultistepScheduler, {}),  # Lu et al. 2022, arXiv:2211.01095, 2M
    "dpmsolver++sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),  # Zhao et al. 2023, arXiv:2302.04867
    "heun": (
        HeunDiscreteScheduler,
        {},
    ),  # Karras et al. 2022, arXiv:2206.00364, algorithm 1; two calls a step
    "euler": (EulerDiscreteScheduler, {}),
}


def set_scheduler(pipeline: MRIDDPMBasePipeline, name: str) -> None:
    """Let a pipeline sample by the scheduler of that name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in SCHEDULERS:
        raise InputError(f"--scheduler {name} is unknown; take one of {', '.join(SCHEDULERS)}.")
    scheduler_class, settings = SCHEDULERS[name]
    known = inspect.signature(scheduler_class.__init__).parameters
    plain = {key: value for key, value in PLAIN.items() if key in known}
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **{**plain, **settings})
