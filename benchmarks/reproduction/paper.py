"""What the paper reports, in numbers: "MRIDiff: Image Synthesis of Brain MRI Scans with Denoising Diffusion Probabilistic Model".

It names neither the betas, nor how its "validation" scans were split off, nor what its epoch losses are the means of.
"""

TABLE_1 = {  # its epoch losses, by setting
    "44×44, batch 80": {
        "count": 8000, "mean": 0.0312, "std": 0.0381, "min": 0.0126, "25%": 0.0224, "50%": 0.0262, "75%": 0.0306, "max": 0.4902,
    },
    "72×72, batch 40": {
        "count": 2600, "mean": 23.5068, "std": 272.1552, "min": 0.0164, "25%": 0.0266, "50%": 0.0327, "75%": 0.068,
        "max": 5959.6943,
    },
}  # fmt: skip
SAMPLE_EPOCHS = (0, 120, 585)  # figures 10, 11 and 12
THRESHOLD = 0.015  # of the loss
SURGE_EPOCH = 2040  # the text says 2450 in one place, and 2040 in another
MINUTES = 80 * 60  # "more than 80 hours" of one T4 for all models

CLAIMS = {
    "ratio": "Image size / batch size has to keep its ratio, or training does not improve (section 7.1).",
    "threshold": "A loss of 0.015 parts meaningful from meaningless samples (section 7.1, which says that those under it are the "
    "meaningless ones; its sense says over).",
    "late epochs": "After epoch 585 little changes but the loss (section 7.2).",
    "attention": "Attention makes the U-Net better (section 5.2 adds it for the features that matter most). At equal compute.",
    "convnext": "ConvNeXt blocks are better than ResNet blocks (section 5.2 names both and compares neither). At equal compute.",
    "timesteps": "More timesteps give clearer images (section 5.3).",
    "loss": "Huber is the loss to take (sections 5.1 and 6).",
    "guard": "(Ours, not the paper's.) The guard keeps a run that is lost without it, when the learning rate of a healthy run jumps up.",
    "surge": "At 72×72 and batch 40 the loss surges after long health (section 7.1, figures 8 and 9).",
}
ASSUMED = (
    "The paper calls its curve a validation loss, and names neither a split nor the betas. Assumed here: linear betas from 1e-4 to "
    "0.02 over T = 300 (those of Ho et al. 2020, as its code base has them), epsilon prediction, Huber's delta 1, no warm-up, no "
    "clipping, no averaged weights; 10 % of the training part held out by groups of copies. Training losses are means over an "
    "epoch's steps, held-out losses those of the weights at its end. Losses compare only under the same schedule."
)
