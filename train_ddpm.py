"""Train a diffusion model on brain MRI slices: ``accelerate launch train_ddpm.py --train_data_dir DIR``.

Without scans it trains on a built-in head phantom. ``python train_ddpm.py --help`` lists every flag.
"""

from mri_ddpm.commands.train import main
from mri_ddpm.errors import exit_on_input_error

if __name__ == "__main__":
    with exit_on_input_error():
        main()
