"""Do synthetic scans help a model? Train on real, on synthetic and on both, test on real scans nobody trained on."""

import numpy as np

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.classifier import Labelled, predict, train_classifier
from mri_ddpm.evaluation.estimates import Estimate
from mri_ddpm.evaluation.lazy import joined

SYNTHETIC_SHARE = 0.5  # of a batch, whatever the number of images
SEEDS = 3
RESAMPLES = 1000
FEWEST_TESTED = 20  # fewer say nothing


def usefulness(
    training: Labelled,
    synthetic: Labelled,
    tested: dict[str, Labelled],
    class_names: tuple[str, ...],
    *,
    synthetic_share: float = SYNTHETIC_SHARE,
    seeds: int = SEEDS,
    device: str = "cpu",
    progress: bool = False,
) -> dict:
    """Train the same small classifier on three settings, several seeds each, and compare it on real scans.

    The settings are ``real``, ``synthetic`` and ``real_and_synthetic``; all get classical augmentation and the same number of
    steps, so the first is the baseline that synthetic scans have to beat (Ravuri & Vinyals 2019 call the second the
    classification accuracy score).

    Args:
        training: the real scans that the generator was trained on.
        synthetic: its samples.
        tested: real scans that neither saw, by name.
        class_names: names by index.
        synthetic_share: of a batch of ``real_and_synthetic``, however many scans there are of either kind.
        seeds: trainings a setting.
        device: where to train.
        progress: show a bar a training.

    Returns:
        For every name in ``tested``: ``n``, ``synthetic_share``, and for every setting ``accuracy``, ``macro_f1`` and ``recall`` by class, each
        as ``Estimate.as_dict()``, and but for ``real`` the same three of ``gain``: the difference from ``real``. Intervals
        are of a bootstrap over seeds and scans, which are drawn alike for all settings.

    Raises:
        InputError: for fewer than two classes, for one without any synthetic or training scan, or for fewer than 20 scans
            in every part to be tested; smaller parts beside a larger one are left out.
    """
    if len(class_names) < 2:
        there = "there is one" if class_names else "the model samples without classes"
        raise InputError(f"usefulness needs at least two classes, and {there}.")
    for name, (_, labels) in (("training", training), ("synthetic", synthetic)):
        missing = [class_names[c] for c in range(len(class_names)) if c not in labels]
        if missing:
            raise InputError(
                f"there is no {name} scan of {missing[0]}; sample more images, or leave the class out."
            )
    enough = {name: part for name, part in tested.items() if len(part[1]) >= FEWEST_TESTED}
    if not enough:
        most = max((len(y) for _, y in tested.values()), default=0)
        raise InputError(
            f"{most} scans to test on are too few for usefulness: at least {FEWEST_TESTED} are needed."
        )
    tested = enough
    both = joined(training[0], synthetic[0]), np.concatenate([training[1], synthetic[1]])
    shares = [(1 - synthetic_share) / len(training[1]), synthetic_share / len(synthetic[1])]
    weights = np.repeat(shares, [len(training[1]), len(synthetic[1])])  # (N,), of both
    settings = {
        "real": (*training, None),
        "synthetic": (*synthetic, None),
        "real_and_synthetic": (*both, weights),
    }
    predictions: dict[str, dict[str, list]] = {name: {setting: [] for setting in settings} for name in tested}
    for setting, (images, labels, weights) in settings.items():
        for seed in range(seeds):
            title = f"classifier on {setting}, seed {seed}" if progress else ""
            model = train_classifier(
                images, labels, len(class_names), seed=seed, device=device, title=title, weights=weights
            )
            for name, (x, _) in tested.items():
                predictions[name][setting].append(predict(model, x, device))
    return {
        name: {
            "n": len(y),
            "synthetic_share": synthetic_share,
            **compare({s: np.array(p) for s, p in predictions[name].items()}, y, class_names),
        }
        for name, (_, y) in tested.items()
    }


def compare(predictions: dict[str, np.ndarray], labels: np.ndarray, class_names: tuple[str, ...]) -> dict:
    """Scores of every setting, and its gain over ``real``, with intervals.

    Args:
        predictions: classes ``(seeds, N)`` by setting.
        labels: true classes ``(N,)``.
        class_names: names by index; the recall of a class that is not among the labels is left out.
    """
    generator = np.random.default_rng(0)
    seeds, n = next(iter(predictions.values())).shape
    draws = [(np.arange(seeds), np.arange(n))]  # first everything as it is: the value; then the resamples
    draws += [
        (generator.integers(seeds, size=seeds), generator.integers(n, size=n)) for _ in range(RESAMPLES)
    ]

    def estimate(values: np.ndarray) -> dict:
        low, high = np.nanpercentile(values[1:], [2.5, 97.5])
        return Estimate(float(values[0]), float(low), float(high), n).as_dict()

    result, real = {}, None
    for setting, p in predictions.items():  # the same draws for all, so that a gain is a paired difference
        tables = np.stack([confusion(p[s][:, i], labels[i], len(class_names)) for s, i in draws])  # (R, C, C)
        scores = {"accuracy": accuracy(tables), "macro_f1": macro_f1(tables)}
        result[setting] = {key: estimate(values) for key, values in scores.items()}
        recalls = recall(tables)
        result[setting]["recall"] = {
            name: estimate(recalls[:, c]) for c, name in enumerate(class_names) if c in labels
        }
        real = real or scores
        if scores is not real:
            result[setting]["gain"] = {key: estimate(scores[key] - real[key]) for key in scores}
    return result


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts ``(true class, predicted class)`` over all seeds: ``(S, N), (N,) -> (C, C)``."""
    pairs = labels * num_classes + predicted  # (S, N)
    return np.bincount(pairs.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(tables: np.ndarray) -> np.ndarray:
    """Share of right answers, ``(..., C, C) -> (...)``."""
    return tables.trace(axis1=-2, axis2=-1) / tables.sum((-2, -1))


def recall(tables: np.ndarray) -> np.ndarray:
    """Share of right answers in each true class, ``(..., C, C) -> (..., C)``; NaN for a class that is not there."""
    with np.errstate(invalid="ignore"):
        return tables.diagonal(axis1=-2, axis2=-1) / tables.sum(-1)


def macro_f1(tables: np.ndarray) -> np.ndarray:
    """Mean over the classes that are there of F1 = 2 TP / (2 TP + FP + FN), ``(..., C, C) -> (...)``."""
    true, predicted = tables.sum(-1), tables.sum(-2)  # (..., C) each
    f1 = 2 * tables.diagonal(axis1=-2, axis2=-1) / np.maximum(true + predicted, 1)
    return np.where(true > 0, f1, 0).sum(-1) / (true > 0).sum(-1)
