"""Brain MRI synthesis with denoising diffusion, on Hugging Face diffusers.

Importing the package is all that ``MRIDDPMPipeline.from_pretrained`` needs in a fresh process.
"""

from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline

__version__ = "0.1.0"
__all__ = ["AttentionUNet2DModel", "MRIDDPMPipeline"]
