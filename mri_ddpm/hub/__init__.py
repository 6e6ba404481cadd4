"""What a Hub repository holds, and how it gets there: export, model card, push."""

from mri_ddpm.hub.background import BackgroundPush
from mri_ddpm.hub.export import export_repository
from mri_ddpm.hub.push import push_run
from mri_ddpm.hub.space import export_space

__all__ = ["BackgroundPush", "export_repository", "export_space", "push_run"]
