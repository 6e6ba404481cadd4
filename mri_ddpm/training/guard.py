"""A guard against loss surges: it judges every update by the gradient's own history, and the loss by its own.

The judgement of an update stays on the device, so that no step waits for it; what it found is read with the losses.
A healthy run is left as it is, to the bit.
"""

import math
from collections import deque
from statistics import fmean, median

import torch

WINDOW = 100  # updates whose gradient norms the next one is compared with; of half as many only NaN and inf are refused
CLIP_AT = 10.0  # times their median: no healthy run was seen over 5
SKIP_AT = 100.0
MANY_SKIPPED = 5  # of the last WINDOW updates
LOSSES, RECENT = 500, 50  # the lower of their medians is what the mean of the newest is compared with
NEWEST = 10
LEAST_RATE_FACTOR = 1 / 32  # of the learning rate; a run that surges even then needs other settings
SURGE_AT = 5.0  # times; single healthy losses reach 5, means of 10 under 3


class Guard:
    """Clips an update whose gradient is far larger than the last ones, skips one that is not finite or larger still.

    Adam's steps hardly grow with a gradient ten times as large, but its running means are spoilt by one that is a
    thousand times as large, and by a single NaN for good. What clipping by history does not stop shows in the loss.

    Args:
        optimizer: a fused Adam or AdamW, which can leave an update out without being waited for.
        parameters: those that it updates.
        active: whether to do any of this; if not, a loss that is not finite is all that counts as trouble.
        fp16: whether a loss scale is being looked for, to which gradients that are not finite belong.
        begun: whether the network begins with the weights of another training: its first gradients and losses then say what is
            usual, where those of a young network say nothing.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[torch.nn.Parameter],
        active: bool = True,
        fp16: bool = False,
        begun: bool = False,
    ):
        self.parameters, self.active, self.fp16, self.begun = parameters, active, fp16, begun
        device = parameters[0].device
        # A ring; with few in it the median is inf
        self.norms = torch.full((WINDOW,), math.inf, device=device)
        self.position = 0  # in the ring
        self.refused = torch.zeros((), device=device)
        self.losses: deque[float] = deque(maxlen=LOSSES)
        self.skipped: deque[bool] = deque(maxlen=WINDOW)
        self.learning_rate = optimizer.defaults["lr"]
        self.rate_factor = 1.0  # of it; halved at every surge
        if active:
            optimizer.register_step_pre_hook(self._leave_out)

    @torch.no_grad()
    def judge(self, norm: torch.Tensor, max_norm: float) -> dict[str, torch.Tensor]:
        """Scale the gradients down, or have the coming update left out; returns both decisions, on the device.

        Args:
            norm: of the gradients before any clipping, ``()``.
            max_norm: to which they were clipped.
        """
        if not self.active:
            return {}
        usual = self.norms.median()
        if self.begun:  # that of the few
            few = self.norms.masked_fill(self.norms.isinf(), math.nan).nanmedian()
            usual = torch.where(few.isnan(), math.inf, few)
        limit, finite = CLIP_AT * usual, norm.isfinite()
        skipped = ~finite | (norm > SKIP_AT * usual)
        clipped = (norm.clamp(max=max_norm) > limit) & ~skipped
        scale = torch.where(clipped, limit / norm.clamp(max=max_norm), 1.0)
        torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], scale)
        # No more than the limit is remembered, so that outliers do not widen it, while a lasting rise can
        known = torch.where(finite, torch.minimum(norm, limit), self.norms[self.position])
        self.norms[self.position] = known
        self.position = (self.position + 1) % WINDOW
        self.refused = skipped.float()
        return {"clipped": clipped, "skipped": skipped & finite if self.fp16 else skipped}

    def _leave_out(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        """Before an update: fused optimizers leave it out where ``found_inf`` is 1, as for GradScaler."""
        of_scaler = optimizer.found_inf if self.fp16 else self.refused
        optimizer.found_inf = torch.maximum(of_scaler, self.refused)

    def trouble(self, losses: list[float], skipped: list[bool]) -> str | None:
        """Take note of the last updates; what is wrong with them in words, or ``None``."""
        before = list(self.losses)
        self.losses += losses
        self.skipped += skipped
        newest = list(self.losses)[-NEWEST:]
        if not all(map(math.isfinite, losses)):
            return f"the loss is {next(loss for loss in losses if not math.isfinite(loss))}"
        if not self.active:
            return None
        if sum(self.skipped) >= MANY_SKIPPED:
            return (
                f"{sum(self.skipped)} of the last {len(self.skipped)} gradients were too large or not finite"
            )
        if len(before) < (NEWEST if self.begun else WINDOW):
            return None
        # A young run's first losses are far over its last
        usual = min(median(before), median(before[-RECENT:]))
        if fmean(newest) > SURGE_AT * usual:
            return f"the loss rose from {usual:.4g} to {fmean(newest):.4g}"
        return None

    def state_dict(self) -> dict:
        """For a checkpoint."""
        return {
            "norms": self.norms.cpu(), "position": self.position, "losses": list(self.losses),
            "skipped": list(self.skipped), "rate_factor": self.rate_factor,
            "learning_rate": self.learning_rate,
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """From a checkpoint. What surges have cost is of its learning rate: another one is taken as it is.

        Raises:
            ValueError: when it is of no guard.
        """
        state = {"learning_rate": self.learning_rate, **state}
        if state.keys() != self.state_dict().keys():
            raise ValueError("it has no state of the guard, as checkpoints of an earlier version")
        norms, position, factor = state["norms"], state["position"], state["rate_factor"]
        if norms.shape != (WINDOW,) or position not in range(WINDOW) or not 0 < factor <= 1:
            raise ValueError("the guard's state is damaged")
        self.norms = norms.to(self.norms)
        self.position = position
        self.rate_factor = float(factor) if state["learning_rate"] == self.learning_rate else 1.0
        self.losses = deque(map(float, state["losses"]), LOSSES)
        self.skipped = deque(map(bool, state["skipped"]), WINDOW)


def all_finite(tensors: list[torch.Tensor]) -> bool:
    """Whether there is no NaN or inf in any tensor; waits for the device."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
