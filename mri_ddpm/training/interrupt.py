"""Ctrl-C, or a machine that is taken away, between two steps instead of in the middle of one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

# Ctrl-C; a scheduler's or a cloud's notice, and accelerate's to its processes
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.signum: int | None = None

    @property
    def alone(self) -> bool:
        """Whether there is no other process to agree with."""
        return self.accelerator.num_processes == 1

    def agreed(self) -> bool:
        """Whether any process was asked to stop; all of them have to ask this after the same step."""
        mine = torch.tensor(float(self.signum is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(mine, "sum") > 0)


@contextmanager
def interrupt_between_steps(accelerator: Accelerator) -> Iterator[Interrupt]:
    """Let a first signal end training after the current step, with a checkpoint; a second Ctrl-C ends it at once.

    Several processes hear it at different steps, and may hear it twice, from the terminal and from their launcher: they
    agree on a step every ``--logging_steps``, and their launcher ends them if that takes more than half a minute. In a
    thread beside the main one, as of a web page, signals are not heard.
    """
    interrupt = Interrupt(accelerator)

    def on_signal(signum, frame):
        interrupt.signum = signum
        if interrupt.alone:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    heard = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {signum: signal.signal(signum, on_signal) for signum in heard}
    try:
        yield interrupt
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
