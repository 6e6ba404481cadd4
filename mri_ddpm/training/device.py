"""The machine a training runs on: how its processes share it, its precision, its cores and its memory."""

import ctypes
import dataclasses
import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import DistributedType
from accelerate.utils import parse_flag_from_env

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import ScanDataset
from mri_ddpm.errors import InputError
from mri_ddpm.fields import AUTO
from mri_ddpm.files import read_json
from mri_ddpm.runs import RunFolder


def check_parallelism(accelerator: Accelerator) -> None:
    """Raise an ``InputError`` for ways to share out a network that is too large for one device; ours are not."""
    if accelerator.distributed_type in (
        DistributedType.FSDP,
        DistributedType.DEEPSPEED,
        DistributedType.MEGATRON_LM,
    ):
        raise InputError(
            f"{accelerator.distributed_type.value} is not supported, for the network fits every GPU; launch with "
            "--multi_gpu, and where memory is short take --gradient_checkpointing or --train_batch_size auto."
        )


def settle_precision(config: TrainingConfig) -> TrainingConfig:
    """Put a precision in the place of "auto": accelerate launch's, else the resumed run's, else the device's.

    Called before there is an ``Accelerator``, which takes it.

    Raises:
        InputError: for fp16 on a CPU.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    precision, folder = config.mixed_precision, RunFolder(Path(config.output_dir))
    if precision == AUTO:
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" is also of who was asked nothing
        if launched != "no":
            precision = launched
        elif config.resume_from_checkpoint and folder.environment.exists():
            precision = read_json(folder.environment).get("mixed_precision", "no")
        else:
            precision = "bf16" if fast_in_bfloat16(on_cpu) else "no"
    if precision == "fp16" and on_cpu:
        raise InputError("--mixed_precision fp16 needs a GPU, and there is none; take no or bf16.")
    return dataclasses.replace(config, mixed_precision=precision)


def fast_in_bfloat16(on_cpu: bool) -> bool:
    """Whether the device has units for matrix products in bfloat16: CPUs with AMX, CUDA from Ampere on."""
    if on_cpu:
        # Without AMX it takes longer than float32. The function is private: a version of torch may be without it.
        return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def use_all_cores(accelerator: Accelerator) -> None:
    """Take the machine's cores where ``accelerate launch`` left a process on a CPU its default of one thread.

    Any other number, from OMP_NUM_THREADS or ``--num_cpu_threads_per_process``, is left as it is.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by the launcher alone
    if launched and accelerator.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = psutil.cpu_count(logical=False) or 1
        torch.set_num_threads(max(1, cores // accelerator.num_processes))


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU have glibc keep the memory of a step for the next one, instead of handing it back and asking again.

    Tensors over 32 MB are else mapped anew each time, and the system clears every page of them at its first use, which at
    44 px and batches of 80 took as long as the arithmetic. Another C library is left as it is.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # of <malloc.h>
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def hold_if_small(accelerator: Accelerator, *parts: ScanDataset) -> bool:
    """Keep scans on the device where they take an eighth of its free memory at most; else they stay on disk."""
    device = accelerator.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    processes_on_it = accelerator.num_processes if device.type == "cpu" else 1
    small = sum(part.nbytes for part in parts) <= free / (8 * processes_on_it)
    for part in parts if small else ():
        part.hold(device)
    return small


def environment(accelerator: Accelerator) -> dict:
    """The machine and the versions a run was made with, for ``environment.json``."""
    packages = ("torch", "diffusers", "accelerate", "datasets", "transformers", "numpy", "mri-ddpm")
    cuda = accelerator.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
    }
