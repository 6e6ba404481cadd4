"""What the page remembers of a visitor, until the tab is closed."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import gradio as gr
import numpy as np

from mri_ddpm.demo.model import Samples, Way

MOST = 100  # visitors that are remembered; then the one who did nothing for the longest time is forgotten


@dataclass
class Session:
    """What a visitor sampled and put in.

    samples, class_label: of the first tab, and the class they were asked for with.
    edited: of the tab that changes scans.
    way: of the tab to watch.
    scan: to be changed, ``(side, side)`` in [0, 1].
    condition: by name, scans in [0, 1] and masks in values of labels.
    """

    samples: Samples | None = None
    class_label: str | None = None
    edited: Samples | None = None
    way: Way | None = None
    scan: np.ndarray | None = None
    condition: dict[str, np.ndarray] = field(default_factory=dict)


class Sessions:
    """All visitors, by the hash that their tab has."""

    def __init__(self):
        self.by_hash: OrderedDict[str, Session] = OrderedDict()
        self.lock = threading.Lock()

    def of(self, request: gr.Request) -> Session:
        """That of the visitor who asks."""
        with self.lock:
            session = self.by_hash.setdefault(request.session_hash, Session())
            self.by_hash.move_to_end(request.session_hash)
            while len(self.by_hash) > MOST:
                self.by_hash.popitem(last=False)
            return session

    def forget(self, request: gr.Request) -> None:
        """Forget one whose tab was closed."""
        with self.lock:
            self.by_hash.pop(request.session_hash, None)
