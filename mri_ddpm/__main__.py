"""``python -m mri_ddpm`` is ``mri-ddpm``: a module is what ``accelerate launch -m`` can start in several processes."""

from mri_ddpm.cli import main

if __name__ == "__main__":
    main()
