"""How near samples come to the training scans, and what an evaluation of the model found."""

import threading
from collections.abc import Callable, Iterator
from html import escape

import gradio as gr
import numpy as np

from mri_ddpm.demo import markup
from mri_ddpm.demo.model import Model, Samples
from mri_ddpm.demo.parts import Parts, on_press
from mri_ddpm.demo.refusals import sentences
from mri_ddpm.demo.streaming import stream
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.memorisation import CopyDetector, Examination, sure_limit, worst_pairs_picture
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
        self.detector: CopyDetector | None = None
        self.lock = threading.Lock()
        self.report = report(model.record.evaluation)

    @property
    def has_scans(self) -> bool:
        """Whether anybody said where they are, or nobody has to, and they can be compared."""
        manifest = self.model.record.manifest
        if not self.model.draws_one_channel or not isinstance(manifest, dict):
            return False
        try:
            return manifest.get("source") == "phantom" or bool(where_scans_are(self.model.record, self.where))
        except InputError:
            return False

    def examine(self, samples: Samples) -> Iterator[str]:
        """Compare; yields what is under way, and at the end a table, with pictures of scans only if they may be shown."""

        from mri_ddpm.evaluation.evaluate import fit_copy_detector  # imported late: it brings the plots along

        def work(tell: Callable) -> None:
            with self.lock:
                if self.detector is None:
                    tell(markup.said("reading the training scans; this is done once, and takes a while"))
                    self.detector = fit_copy_detector(self.model.pipeline, self.model.name, **self.where)
            tell(markup.said("comparing"))
            (images,) = samples.channels.values()
            levels = (np.round(images.numpy() * 255) / 255).astype(np.float32)
            found = self.detector.examine(levels)
            picture = ""
            if self.show_scans:
                pairs = worst_pairs_picture(self.detector, found, levels, count=len(levels))
                words = "sample, nearest training scan, and their difference"
                picture = (
                    f'<img class="pairs" src="{markup.png_url(pairs)}" alt="{words}"><small>{words}</small>'
                )
            tell(table(self.detector, found, samples) + picture)

        return stream(work)


def table(detector: CopyDetector, found: Examination, samples: Samples) -> str:
    """A row a sample: how alike the nearest training scan is, how suspicious that makes it, and the verdict."""
    sure = found.suspicion < sure_limit(detector.validation_suspicion, len(found.suspicion))
    rows = []
    for i, suspicion in enumerate(found.suspicion):
        title = ", ".join(
            filter(None, [samples.labels[i] if samples.labels else "", f"seed {samples.options.seed + i}"])
        )
        alike = found.nearest["pixels"].similarity[i]
        verdict = VERDICTS[int(found.flagged[i]) + int(sure[i])]
        rows.append(
            f"<tr><td>{escape(title)}</td><td>{alike:.3f}</td><td>{suspicion:.2f}</td><td>{verdict}</td></tr>"
        )
    usual = float(np.median(detector.validation_suspicion))
    return (
        '<div class="scroll"><table><thead><tr><th>sample</th><th>correlation with the nearest scan</th>'
        f"<th>distance, over its limit</th><th>verdict</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p>Compared with {len(detector.training)} training scans. The distance is that to the nearest scan, over the mean of the 50 "
        f"nearest; 1 is the limit. Of real scans that the model never saw, 5 % lie under it, and half under {usual:.2f}.</p>"
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
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{entry['value']:.4g}</td><td>{real_of(entry)}</td></tr>"
        for name, entry in (evaluation.get("quality") or {}).items()
    )
    head = "<tr><th>metric</th><th>synthetic</th><th>real validation scans</th></tr>"
    numbers = (
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>' if rows else ""
    )
    return f"<h3>Evaluation</h3><dl>{answers}</dl>{numbers}"


def real_of(entry: dict) -> str:
    """A metric of real scans, where it was measured."""
    return f"{entry['real']:.4g}" if isinstance(entry.get("real"), (int, float)) else "-"


def add_compare(parts: Parts, comparison: Comparison) -> None:
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
                samples = parts.sessions.of(request).samples
                if samples is None:
                    raise InputError("there are no samples to compare; sample some in the first tab.")
                yield from comparison.examine(samples)

        on_press(run, stop, compare, set(), [found], line="scans")
    if comparison.report:
        gr.HTML(comparison.report)
