"""The presets: what each of them sets beside the defaults of `TrainingConfig`, which are our own recipe."""

PAPER_BETAS = {"beta_start": 1e-4, "beta_end": 0.02}  # MRIDiff's; Ho et al.'s of T = 1000 as they are
SCALED_BETAS = {"beta_start": 1e-4 * 1000 / 300, "beta_end": 0.02 * 1000 / 300}  # those for T = 300
# Beats a preset's where all weights of a model are trained on: docs/finetune.md
ADAPTING = {"learning_rate": 2e-4}
MRIDIFF = {  # the paper's recipe (MRIDiff, sections 5 and 7): betas, loss, optimizer and rate, with nothing of ours
    **PAPER_BETAS,
    "prediction_type": "epsilon",
    "timestep_sampling": "uniform",
    "attention_types": ["linear", "linear", "linear"],
    "learning_rate": 1e-3,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "max_grad_norm": 0.0,
}
PRESETS: dict[str, dict] = {
    "tiny": {  # what the tests train, with the same numbers on every CPU
        "mixed_precision": "no",
        "output_dir": "runs/tiny",
        "resolution": 16,
        "phantom_images": 64,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "attention_types": ["linear", "full"],
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "train_batch_size": 8,
        "max_train_steps": 20,
        "lr_warmup_steps": 2,
        "logging_steps": 5,
        "validation_steps": 10,
        "checkpointing_steps": 10,
        "num_samples": 4,
        "num_inference_steps": 5,
    },
    "quickstart": {  # heads in three minutes on two CPU cores that are fast in bf16
        "output_dir": "runs/quickstart",
        "resolution": 32,
        "block_out_channels": [32, 64, 96],
        "train_batch_size": 16,
        "max_train_steps": 800,
        "learning_rate": 1.5e-3,
        "lr_warmup_steps": 50,
        "validation_steps": 400,
        "checkpointing_steps": 400,
        "num_inference_steps": 50,
    },
    "mridiff-44": {
        **MRIDIFF,
        "output_dir": "runs/mridiff-44",
        "resolution": 44,
        "train_batch_size": 80,
        "num_train_epochs": 8000,
    },
    "mridiff-72": {
        **MRIDIFF,
        "output_dir": "runs/mridiff-72",
        "resolution": 72,
        "train_batch_size": 40,
        "num_train_epochs": 2600,
    },
    "mridiff-figure4": {  # 388 x 388 with a 1024-channel bottleneck
        **MRIDIFF,
        "output_dir": "runs/mridiff-figure4",
        "resolution": 388,
        "block_out_channels": [64, 128, 256, 512, 1024],
        "attention_types": ["none", "none", "linear", "linear", "linear"],
        "train_batch_size": 8,
    },
    "mri-ddpm-64": {"output_dir": "runs/mri-ddpm-64"},  # our own recipe: the defaults above
    "mri-ddpm-44": {  # the same for small machines
        "output_dir": "runs/mri-ddpm-44",
        "resolution": 44,
        "block_out_channels": [32, 64, 128],
        "train_batch_size": 32,
        "max_train_steps": 6000,
        "validation_steps": 1000,
    },
}
