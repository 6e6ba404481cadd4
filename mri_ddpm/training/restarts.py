"""Runs that their launcher starts again, by ``--max_restarts``, when one of their processes has died.

All processes are started anew with the first command line, and resume from the latest checkpoint by themselves.
"""

import os
import platform
from collections.abc import Iterator

import psutil
from accelerate import InitProcessGroupKwargs
from torch.distributed import PrefixStore, Store, register_rendezvous_handler, rendezvous

from mri_ddpm.files import read_json, write_json
from mri_ddpm.runs import RunFolder

STARTS = "TORCHELASTIC_RESTART_COUNT"  # set by torchrun, and by accelerate launch where it starts several processes


def restarted(folder: RunFolder) -> bool:
    """Whether the launcher that began this run has started it again.

    Another launcher's run is somebody's older one. The first machine's launcher decides for the others, whose processes
    write nothing and stop when those of the first do.
    """
    if os.environ.get(STARTS, "0") == "0":
        return False
    if os.environ.get("GROUP_RANK", "0") != "0":
        return True
    return folder.launcher.exists() and read_json(folder.launcher) == launcher()


def mark_launcher(folder: RunFolder) -> None:
    """Leave word of the launcher for its restarts; of a run without one, nothing."""
    if STARTS in os.environ:
        write_json(folder.launcher, launcher())


def launcher() -> dict:
    """The process that started this one; numbers are used again, a number with its time is not."""
    parent = psutil.Process(os.getppid())
    return {"host": platform.node(), "pid": parent.pid, "started": parent.create_time()}


def meet_anew() -> list[InitProcessGroupKwargs]:
    """For ``Accelerator(kwargs_handlers=...)``: a restart's processes do not look for those of the start before.

    They meet in the launcher's store, where gloo would find the addresses of the dead ones.
    """
    if os.environ.get(STARTS, "0") == "0":
        return []
    register_rendezvous_handler("restart", in_store_of_this_start)
    return [InitProcessGroupKwargs(init_method="restart://")]


def in_store_of_this_start(url: str, **kwargs) -> Iterator[tuple[Store, int, int]]:
    """Meet as ``env://`` does, in a part of the store that bears the restart's number."""
    for store, rank, world_size in rendezvous("env://", **kwargs):
        yield PrefixStore(f"restart-{os.environ[STARTS]}", store), rank, world_size
