"""Brain MRI synthesis with denoising diffusion, on Hugging Face diffusers.

Importing the package is all that ``from_pretrained`` needs in a fresh process.
"""

from pathlib import Path

# In a clone pipelines/ stands beside this folder. An editable install finds it there; beside a plain one, whose package this
# folder hides, it is found by looking into the clone, too.
if Path(__file__).parents[1].joinpath("pipelines", "pipeline_mri_ddpm.py").is_file():
    __path__.append(str(Path(__file__).parents[1]))

from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.pipelines.pipeline_mri_ddpm import (
    MRIDDPMImg2ImgPipeline,
    MRIDDPMInpaintPipeline,
    MRIDDPMPipeline,
)

__version__ = "0.1.0"
__all__ = ["AttentionUNet2DModel", "MRIDDPMImg2ImgPipeline", "MRIDDPMInpaintPipeline", "MRIDDPMPipeline"]
