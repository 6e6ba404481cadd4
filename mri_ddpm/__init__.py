"""Brain MRI synthesis with denoising diffusion, on Hugging Face diffusers.

``from mri_ddpm import MRIDDPMPipeline`` is all that ``MRIDDPMPipeline.from_pretrained`` needs in a fresh process.
"""

from pathlib import Path

# In a clone pipelines/ stands beside this folder. An editable install finds it there; beside a plain one, whose package this
# folder hides, it is found by looking into the clone, too.
if Path(__file__).parents[1].joinpath("pipelines", "pipeline_mri_ddpm.py").is_file():
    __path__.append(str(Path(__file__).parents[1]))

__version__ = "0.1.0"
__all__ = ["AttentionUNet2DModel", "MRIDDPMImg2ImgPipeline", "MRIDDPMInpaintPipeline", "MRIDDPMPipeline"]


def __getattr__(name: str):
    """Import what is asked for when it is: ``mri-ddpm --help`` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mri_ddpm.models import modeling_attention_unet
    from mri_ddpm.pipelines import pipeline_mri_ddpm

    return getattr(pipeline_mri_ddpm if name.endswith("Pipeline") else modeling_attention_unet, name)
