"""Work that says how far it is, and ends when nobody listens any more."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Told = TypeVar("Told")


class Stopped(Exception):
    """Nobody waits for the work any more."""


class Worker:
    """A thread that does one work after another.

    It lives on, for PyTorch prepares its kernels anew in each thread: in one of its own, twenty steps take more than twice as long.
    """

    def __init__(self):
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._jobs.get()()

    def stream(self, work: Callable[[Callable[[Told], None]], None]) -> Iterator[Told]:
        """Run ``work(tell)`` in the thread, and yield what it tells as soon as it tells it.

        When the iterator is closed, as a page does that a visitor stops or leaves, the next ``tell`` raises ``Stopped`` in the
        work. Closing waits for that.

        Raises:
            Exception: whatever the work raises.
        """
        told: queue.SimpleQueue = queue.SimpleQueue()
        closed, ended, end = threading.Event(), threading.Event(), object()

        def tell(item: Told) -> None:
            if closed.is_set():
                raise Stopped
            told.put(item)

        def run() -> None:
            try:
                work(tell)
                told.put(end)
            except BaseException as error:  # raised again below, but for Stopped, which nobody hears
                told.put(error)
            finally:
                ended.set()

        self._jobs.put(run)
        try:
            while (item := told.get()) is not end:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            ended.wait()


@dataclass(frozen=True)
class Progress:
    """How far a sampling is: ``done`` of ``total`` steps, ``images`` finished of ``num_images``, since ``begun``."""

    done: int
    total: int
    images: int
    num_images: int
    begun: float

    @property
    def seconds_left(self) -> float | None:
        """An estimate by the steps so far; ``None`` before the second."""
        if self.done < 2:
            return None
        return (time.monotonic() - self.begun) * (self.total - self.done) / self.done
