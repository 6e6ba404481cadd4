"""Every measure of quality, overall and by class, beside what real scans score against real scans."""

from collections.abc import Collection

import numpy as np
from tqdm.auto import tqdm

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.classifier import Labelled
from mri_ddpm.evaluation.estimates import Estimate, mean
from mri_ddpm.evaluation.features import Extractor
from mri_ddpm.evaluation.lazy import blocks
from mri_ddpm.evaluation.quality import (
    detail_ratio,
    frechet_distance,
    kid,
    ms_ssim_of_pairs,
    precision_recall_density_coverage,
)
from mri_ddpm.evaluation.subject import RealScans, class_counts
from mri_ddpm.evaluation.two_sample import two_sample_accuracy
from mri_ddpm.evaluation.wavelets import WaveletFeatures

# Of one set of images: "images" (N, 1, H, W), "features" and "wavelets" (N, D) each
Views = dict[str, np.ndarray]
# Each metric of training scans and a group of images: its name, what it looks at, and an estimate or several by name
METRICS = {
    "wavelet_kid": ("wavelets", kid),
    "wavelet_frechet_distance": ("wavelets", frechet_distance),
    "detail_ratio": ("images", detail_ratio),
    "kid": ("features", kid),
    "frechet_distance": ("features", frechet_distance),
    "precision_recall": ("features", precision_recall_density_coverage),
    "ms_ssim": ("images", lambda _, images: ms_ssim_of_pairs(images)),
}
TWO_SAMPLE = "two_sample_accuracy"  # beside them: it needs the unseen scans too
GUESSING = 0.5  # two-sample accuracy of real scans against others of the same kind


def score_all(
    real: RealScans,
    synthetic: Labelled,
    features: Extractor,
    metrics: Collection[str] = (*METRICS, TWO_SAMPLE),
) -> dict:
    """Scores of the synthetic images against the training scans, and of the unseen real ones against the same.

    ``metrics``: which, of ``METRICS`` and ``two_sample_accuracy``.

    Returns:
        ``quality``: by metric an ``Estimate.as_dict()`` with ``real``, the value of the validation scans. Here alone is
        ``two_sample_accuracy``, for which ``real`` is 0.5 and not measured.
        ``quality_by_class``: the same by class. ``real_against_real``: by part (validation, test), then "all" and classes.
        ``quality_at_validation_size``: of as many synthetic images as there are validation scans, since Fréchet distance, recall
        and coverage depend on the number. A score that needs more images than there are is left out, and named in
        ``not_measured`` with the reason.
    """
    not_measured: dict[str, str] = {}
    wavelets = WaveletFeatures.fit(real.training[0])

    def views(images: np.ndarray) -> Views:
        return {"images": images, "features": features(images), "wavelets": wavelets(images)}

    training, training_labels = views(real.training[0]), real.training[1]
    unlearned = np.zeros(len(training_labels), dtype=bool)
    unlearned[features.reference] = True
    parts = {"synthetic": synthetic, **real.unseen}
    few = subset(synthetic, len(real.validation[1]), max(1, len(real.class_names)))
    parts["synthetic_at_validation_size"] = few
    scored: dict[str, dict[str, dict]] = {}
    for part, (images, labels) in tqdm(parts.items(), desc="comparing", unit="part"):
        viewed = views(images)
        chosen = {"all": slice(None)}
        if part != "synthetic_at_validation_size":
            chosen |= {name: labels == c for c, name in enumerate(real.class_names)}
        scored[part] = {}
        for group, rows in chosen.items():
            wanted = (
                np.ones_like(unlearned)
                if group == "all"
                else training_labels == real.class_names.index(group)
            )
            reference = {name: view[wanted] for name, view in training.items()}
            reference["features"] = training["features"][wanted & unlearned]
            group_views = {name: view[rows] for name, view in viewed.items()}
            scored[part][group] = scores(reference, group_views, f"{part}, {group}", metrics, not_measured)
    for group, entries in scored["synthetic"].items():
        for metric, entry in entries.items():
            entry["real"] = scored["validation"][group].get(metric, {}).get("value")
    quality = scored.pop("synthetic")
    if TWO_SAMPLE in metrics:
        try:
            quality["all"][TWO_SAMPLE] = two_sample(real, synthetic, features.device)
        except InputError as error:
            not_measured[TWO_SAMPLE] = str(error)
    at_size = scored.pop("synthetic_at_validation_size")["all"]
    return {
        "quality": quality.pop("all"),
        "quality_by_class": quality,
        "quality_at_validation_size": at_size,
        "real_against_real": scored,
        "not_measured": not_measured,
    }


def two_sample(real: RealScans, synthetic: Labelled, device: str) -> dict:
    """``two_sample_accuracy`` as it stands in ``quality``; of several channels it sees too whether they fit one another."""
    accuracy = two_sample_accuracy(real.training[0], real.validation[0], synthetic[0], device, progress=True)
    return accuracy.as_dict() | {"real": GUESSING}


def score_mask(real: RealScans, synthetic: Labelled, labels: Collection[str]) -> dict:
    """Of a mask that is drawn: the share of an image's pixels that each label takes, by part of the scans.

    Images are ``(N, labels, H, W)`` of 0 and 1. Returns ``label_shares``: by label and part the mean over images.
    """
    parts = {"synthetic": synthetic, "training": real.training, **real.unseen}
    shares = {
        part: np.concatenate(
            [block.mean((2, 3), dtype=np.float64) for block in blocks(images)]
        )  # (N, labels)
        for part, (images, _) in parts.items()
    }
    return {
        "label_shares": {
            label: {part: mean(values[:, i]).as_dict() for part, values in shares.items()}
            for i, label in enumerate(labels)
        }
    }


def scores(
    reference: Views, images: Views, what: str, metrics: Collection[str], not_measured: dict[str, str]
) -> dict:
    """Every metric of one group of images that there are enough images for."""
    found = {}
    for name, (view, metric) in METRICS.items():
        if name not in metrics:
            continue
        try:
            estimates = metric(reference[view], images[view])
        except InputError as error:
            not_measured[f"{name} of {what}"] = str(error)
            continue
        estimates = {name: estimates} if isinstance(estimates, Estimate) else estimates
        found |= {key: estimate.as_dict() for key, estimate in estimates.items()}
    return found


def subset(part: Labelled, n: int, num_classes: int) -> Labelled:
    """The first images of each class, ``n`` in all, in the same proportions."""
    images, labels = part
    counts = class_counts(labels, num_classes, min(n, len(labels)))
    rows = np.concatenate([np.flatnonzero(labels == c)[:count] for c, count in enumerate(counts)])
    return images[rows], labels[rows]
