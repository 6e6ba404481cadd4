"""How near samples come to the training scans, and what an evaluation of the model found."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr
import numpy as np
from torch.optim.optimizer import register_optimizer_step_post_hook

from mri_ddpm.demo import markup
from mri_ddpm.demo.model import Model, Samples
from mri_ddpm.demo.parts import Sessions, on_press, sentences
from mri_ddpm.demo.streaming import Worker
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.copies import ChannelDetectors, ChannelExaminations
from mri_ddpm.evaluation.memorisation import sure_limit, worst_pairs_picture
from mri_ddpm.evaluation.subject import where_scans_are

VERDICTS = ("not taken for a copy", "taken for a copy", "surely a copy")


class Comparison:
    """The training scans of a model, read when they are first asked for.

    Args:
        model: whose.
        where: they are, as of ``mri-ddpm evaluate``.
        show_scans: whether a visitor may see them.
    """

    def __init__(self, model: Model, where: dict[str, str | None], show_scans: bool):
        self.model, self.where, self.show_scans = model, where, show_scans
        self.detectors: ChannelDetectors | None = None
        self.worker = Worker()
        self.report = report(model.record.evaluation)

    @property
    def has_scans(self) -> bool:
        """Whether anybody said where they are, or nobody has to, and they can be compared."""
        manifest = self.model.record.manifest
        if not self.model.contrasts or not isinstance(manifest, dict):
            return False
        try:
            return manifest.get("source") == "phantom" or bool(where_scans_are(self.model.record, self.where))
        except InputError:
            return False

    def examine(self, samples: Samples) -> Iterator[str]:
        """Compare; yields what is under way, and at the end a table, with pictures of scans only if they may be shown."""

        # Imported late: it brings the plots along
        from mri_ddpm.evaluation.evaluate import fit_copy_detectors

        def work(tell: Callable) -> None:
            if self.detectors is None:
                tell(markup.said("reading the training scans; this is done once, and takes a while"))
                with each_step_tells(tell):
                    self.detectors = fit_copy_detectors(self.model.pipeline, self.model.name, **self.where)
            tell(markup.said("comparing"))
            images = [samples.channels[name].numpy() for name in self.model.contrasts]
            images = (np.round(np.concatenate(images, axis=1) * 255) / 255).astype(np.float32)  # as in files
            found = self.detectors.examine(images)
            tell(
                table(self.detectors, found, samples) + (self.pairs(found, images) if self.show_scans else "")
            )

        return self.worker.stream(work)

    def pairs(self, found: ChannelExaminations, images: np.ndarray) -> str:
        """Each sample ``(N, C, H, W)`` beside its nearest scan, in each contrast."""
        shown = ""
        for i, name in enumerate(self.model.contrasts):
            words = ", ".join(filter(None, [name, "sample, nearest training scan, and their difference"]))
            pairs = worst_pairs_picture(
                self.detectors.channels[i], found.channels[i], images[:, i : i + 1], count=len(images)
            )
            shown += f'<img class="pairs" src="{markup.png_url(pairs)}" alt="{escape(words)}"><small>{escape(words)}</small>'
        return shown


@contextmanager
def each_step_tells(tell: Callable) -> Iterator[None]:
    """Tell of each optimizer step of this thread, so that who learns the features is stopped when nobody listens."""
    thread, steps = threading.get_ident(), itertools.count(1)

    def told(*_) -> None:
        if threading.get_ident() == thread:
            tell(
                markup.said(
                    f"learning what tells the training scans apart, step {next(steps)}; this is done once"
                )
            )

    hook = register_optimizer_step_post_hook(told)
    try:
        yield
    finally:
        hook.remove()


def table(detectors: ChannelDetectors, found: ChannelExaminations, samples: Samples) -> str:
    """A row a sample: how alike the nearest training scan is, how suspicious that makes it, and the verdict."""
    sure = found.suspicion < sure_limit(detectors.validation_suspicion, len(found.suspicion))
    alike = np.max([examined.nearest["pixels"].similarity for examined in found.channels], axis=0)
    rows = []
    for i, suspicion in enumerate(found.suspicion):
        of_class = samples.labels[i] if samples.labels else ""
        title = ", ".join(filter(None, [of_class, f"seed {samples.options.seed + i}"]))
        verdict = VERDICTS[int(found.flagged[i]) + int(sure[i])]
        rows.append(
            f"<tr><td>{escape(title)}</td><td>{alike[i]:.3f}</td><td>{suspicion:.2f}</td><td>{verdict}</td></tr>"
        )
    usual = float(np.median(detectors.validation_suspicion))
    count = len(detectors.channels[0].training)
    return (
        '<div class="scroll"><table><thead><tr><th>sample</th><th>correlation with the nearest scan</th>'
        f"<th>distance, over its limit</th><th>verdict</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p>Compared with {count} training scans: as they are, turned and enlarged, in parts, and two mixed. The distance is that to the "
        f"nearest scan, over the mean of the 50 nearest; 1 is about the limit. Of real scans that the model never saw, 5 % are taken for copies too; half have a "
        f"distance under {usual:.2f}.</p>"
    )


def report(evaluation: dict | None) -> str:
    """The questions that an evaluation answered, and its numbers beside those of real scans; "" for what is none."""
    try:
        return answered(evaluation) if evaluation else ""
    except (AttributeError, KeyError, TypeError, ValueError):  # anybody may have written it
        return ""


def answered(evaluation: dict) -> str:
    """As of ``report``; raises nearly anything for what is no evaluation."""
    answers = "".join(
        f"<dt>{escape(str(verdict['question']))}</dt><dd>{escape(str(verdict['answer']))}</dd>"
        for verdict in evaluation.get("verdicts") or []
    )
    parts = {"": evaluation, **(evaluation.get("channels") or {})}
    rows = "".join(
        f"<tr><td>{escape(name + f' of {channel}' * bool(channel))}</td><td>{entry['value']:.4g}</td><td>{real_of(entry)}</td></tr>"
        for channel, part in parts.items()
        for name, entry in (part.get("quality") or {}).items()
    )
    head = "<tr><th>metric</th><th>synthetic</th><th>real validation scans</th></tr>"
    numbers = (
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>' if rows else ""
    )
    return f"<h3>Evaluation</h3><dl>{answers}</dl>{numbers}"


def real_of(entry: dict) -> str:
    """A metric of real scans, where it was measured."""
    return f"{entry['real']:.4g}" if isinstance(entry.get("real"), (int, float)) else "-"


def add_compare(comparison: Comparison, sessions: Sessions) -> None:
    """The samples of the first tab beside the training scans, and the evaluation."""
    if comparison.has_scans:
        seen = "" if comparison.show_scans else " No scan is shown."
        gr.Markdown(
            f"How near the samples of the first tab come to the scans that the model was trained on.{seen}"
        )
        with gr.Row():
            run = gr.Button("Compare the samples", variant="primary")
            stop = gr.Button("Stop")
        found = gr.HTML()

        def compare(_: dict, request: gr.Request) -> Iterator[str]:
            with sentences():
                samples = sessions.of(request).samples
                if samples is None:
                    raise InputError("there are no samples to compare; sample some in the first tab.")
                yield from comparison.examine(samples)

        on_press(run, stop, compare, set(), [found], line="scans")
    if comparison.report:
        gr.HTML(comparison.report)
