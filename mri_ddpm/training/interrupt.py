"""Ctrl-C between two steps instead of in the middle of one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator


class Interrupt:
    """Whether Ctrl-C was pressed."""

    is_set = False


@contextmanager
def interrupt_between_steps(accelerator: Accelerator) -> Iterator[Interrupt]:
    """Let a first Ctrl-C end training after the current step, with a checkpoint; a second one ends it at once.

    With several processes, which may hear it at different steps, Ctrl-C ends at once from the start.
    """
    interrupt = Interrupt()

    def on_interrupt(signum, frame):
        interrupt.is_set = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.getsignal(signal.SIGINT)
    if accelerator.num_processes == 1:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
