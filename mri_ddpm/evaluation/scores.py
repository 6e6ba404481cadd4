"""Every measure of quality, overall and by class, beside what real scans score against real scans."""

from collections.abc import Callable

import numpy as np
from tqdm.auto import tqdm

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.classifier import Labelled
from mri_ddpm.evaluation.features import Extractor
from mri_ddpm.evaluation.quality import (
    frechet_distance,
    kid,
    ms_ssim_of_pairs,
    precision_recall_density_coverage,
)
from mri_ddpm.evaluation.subject import RealScans, class_counts


def score_all(real: RealScans, synthetic: Labelled, features: Extractor) -> dict:
    """Scores of the synthetic images against the training scans, and of the unseen real ones against the same.

    Returns:
        ``quality``: by metric an ``Estimate.as_dict()`` with ``real``, the value of the held-out scans.
        ``quality_by_class``: the same by class. ``real_against_real``: by part (held_out, test), then "all" and classes.
        ``quality_at_held_out_size``: of as many synthetic images as there are held-out scans, since Fréchet distance, recall
        and coverage depend on the number. A score that needs more images than there are is left out, and named in
        ``not_measured`` with the reason.
    """
    not_measured: dict[str, str] = {}
    training = (*real.training, features(real.training[0]))
    parts = {"synthetic": synthetic, **real.unseen}
    few = subset(synthetic, len(real.held_out[1]), max(1, len(real.class_names)))
    parts["synthetic_at_held_out_size"] = few
    scored: dict[str, dict[str, dict]] = {}
    for part, (images, labels) in tqdm(parts.items(), desc="comparing", unit="part"):
        embedded = features(images)
        chosen = {"all": slice(None)}
        if part != "synthetic_at_held_out_size":
            chosen |= {name: labels == c for c, name in enumerate(real.class_names)}
        scored[part] = {}
        for group, rows in chosen.items():
            reference = slice(None) if group == "all" else training[1] == real.class_names.index(group)
            scored[part][group] = scores(
                training[2][reference], embedded[rows], images[rows], f"{part}, {group}", not_measured
            )
    for group, entries in scored["synthetic"].items():
        for metric, entry in entries.items():
            entry["real"] = scored["held_out"][group].get(metric, {}).get("value")
    quality = scored.pop("synthetic")
    at_size = scored.pop("synthetic_at_held_out_size")["all"]
    return {
        "quality": quality.pop("all"),
        "quality_by_class": quality,
        "quality_at_held_out_size": at_size,
        "real_against_real": scored,
        "not_measured": not_measured,
    }


def scores(
    reference: np.ndarray, embedded: np.ndarray, images: np.ndarray, what: str, not_measured: dict[str, str]
) -> dict:
    """Every metric of one group of images that there are enough images for."""

    def attempt(name: str, measure: Callable[[], dict]) -> dict:
        try:
            return measure()
        except InputError as error:
            not_measured[f"{name} of {what}"] = str(error)
            return {}

    return {
        **attempt("kid", lambda: {"kid": kid(reference, embedded).as_dict()}),
        **attempt(
            "frechet_distance",
            lambda: {"frechet_distance": frechet_distance(reference, embedded).as_dict()},
        ),
        **attempt(
            "precision and recall",
            lambda: {
                name: estimate.as_dict()
                for name, estimate in precision_recall_density_coverage(reference, embedded).items()
            },
        ),
        **attempt("ms_ssim", lambda: {"ms_ssim": ms_ssim_of_pairs(images).as_dict()}),
    }


def subset(part: Labelled, n: int, num_classes: int) -> Labelled:
    """The first images of each class, ``n`` in all, in the same proportions."""
    images, labels = part
    counts = class_counts(labels, num_classes, min(n, len(labels)))
    rows = np.concatenate([np.flatnonzero(labels == c)[:count] for c, count in enumerate(counts)])
    return images[rows], labels[rows]
