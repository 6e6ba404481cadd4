"""``python -m mri_ddpm`` is ``mri-ddpm``: a module is what ``accelerate launch -m`` can start in several processes."""

from mri_ddpm.commands import main

if __name__ == "__main__":
    main()
