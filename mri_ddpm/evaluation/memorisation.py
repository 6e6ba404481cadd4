"""Are synthetic images copies of training patients? The audit, and the detector that rejects copies.

For every image the nearest training image is sought in several spaces: as it is (`nearest`), turned and enlarged (`registration`), in a part of it
and mixed with another (`fragments`), and where the caller gives one in an embedding. Slices of one patient resemble each other, so
*real validation images* come near training images too: how near is what synthetic images are compared with. A limit on the
correlation alone fails: at 32 pixels 5 % of validation scans correlate at over 0.985 with a slice in training, and 42 % of training
scans do after noise of sigma 0.05. So the verdict goes by a *ratio*, that of the nearest distance to the mean distance of the 50
nearest. What is found of altered copies, and what is not, stands in docs/evaluate.md and is asked by `benchmarks/copies.py`.

Images of several channels are compared in all of them at once, moved and flipped alike.

N: images, M: training images, K: validation images, C: channels, D: width of the embedding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import affine_transform
from scipy.stats import binom, binomtest, norm

from mri_ddpm.errors import InputError

from .estimates import Estimate
from .fragments import nearest_by_mixture, nearest_by_parts
from .lazy import Images
from .nearest import MIN_TRAINING, Nearest, check, nearest_by_correlation, nearest_by_embedding
from .registration import nearest_by_registration

MIN_VALIDATION = 20
VERDICT_RATE = 0.05  # of real images never trained on, taken for copies
FALSE_ALARM_RATE = 0.025  # of sets of images without a copy, in which one is taken for a sure copy
LEAST_SPREAD = 0.6  # of logarithms of suspicions; those of scans have 0.7, of phantoms 0.2 and a longer tail
PLAIN = 0.01  # of the limit: below it the simplest search tells where a copy is from
MIN_LIMIT = 1e-3  # on the ratio; among validation scans it is 0.05 to 0.2, of copies 0
SEARCHES = {
    "pixels": nearest_by_correlation,
    "registered": nearest_by_registration,
    "parts": nearest_by_parts,
    "mixtures": nearest_by_mixture,
}
OF_PARTS = (
    "parts",
    "mixtures",
)  # what they find in many scans, such as a label in a corner, is no copy of a scan

Embedding = Callable[[np.ndarray], np.ndarray]  # images (N, C, H, W) -> features (N, D)


@dataclass(frozen=True, eq=False)
class Examination:
    """What `CopyDetector.examine` found of N images.

    nearest: by space, "pixels" and, with an embedding, "embedding".
    over_95, over_99: by space, bool (N,): more similar than the validation's 95th and 99th percentile.
    suspicion: float (N,), the least of the spaces' ratios, each over its space's limit; small is suspicious.
    flagged: bool (N,), the verdict: taken for a copy.
    space, index: str (N,) and int64 (N,), the space of that least ratio, and the training image there.
    """

    nearest: dict[str, Nearest]
    over_95: dict[str, np.ndarray]
    over_99: dict[str, np.ndarray]
    suspicion: np.ndarray
    flagged: np.ndarray
    space: np.ndarray
    index: np.ndarray


@dataclass(frozen=True, eq=False)
class CopyDetector:
    """Training images, and how near to them real validation images come; made once by `fit`.

    The verdict: in one space or the other, an image's ratio is so low that of validation images 5 % are as low in any. 5 %
    and not 1 %, for the 1st percentile of some hundred scans is one or two of them, which may well be copies that
    de-duplication missed: over halves of the 272 it varies from 0.04 to 0.09 (32 pixels), the 5th from 0.10 to 0.12.
    """

    training: Images
    searches: tuple[str, ...]
    embed: Embedding | None
    training_features: np.ndarray | None
    validation: dict[str, Nearest]

    @classmethod
    def fit(
        cls,
        training: Images,
        validation: Images,
        embed: Embedding | None = None,
        searches: Sequence[str] = tuple(SEARCHES),
    ) -> "CopyDetector":
        """Find how near the validation images come to training.

        training, validation: real images (M, C, H, W) and (K, C, H, W) in [0, 1], M >= 20 and K >= 20, no picture in
            both. Fold copies within training: of a picture there k times, the ratio is up to 50 / (51 - k) times
            too high, so a few do no harm.
        embed: for one more space.
        searches: of `SEARCHES`, which spaces there are.
        Raises `InputError` for images that cannot be compared, and where validation images are copies themselves. Where only a
        part of 5 % of them is in training too, the searches for parts tell nothing and are left out.
        """
        check(training, "training images", MIN_TRAINING)
        check(validation, "validation images", MIN_VALIDATION, training)
        features = None if embed is None else embed(training)
        found = _nearest_in_each(validation, training, searches, embed, features)
        blind = {space for space, n in found.items() if _quantile(n.ratio, VERDICT_RATE) < MIN_LIMIT}
        if not blind <= set(OF_PARTS) or blind == found.keys():
            raise InputError(
                "5 % or more of the validation images are copies of training images: hold out others."
            )
        searches = tuple(name for name in searches if name not in blind)
        return cls(training, searches, embed, features, {s: n for s, n in found.items() if s not in blind})

    def examine(self, images: np.ndarray) -> Examination:
        """Find the nearest training image of each image (N, C, H, W) in each space, and pass the verdict."""
        nearest = _nearest_in_each(images, self.training, self.searches, self.embed, self.training_features)
        over_95, over_99 = (
            {s: n.similarity > _quantile(self.validation[s].similarity, level) for s, n in nearest.items()}
            for level in (0.95, 0.99)
        )
        ratios = self._relative_ratios(nearest)  # (spaces, N)
        space, rows = ratios.clip(PLAIN).argmin(0), np.arange(len(images))
        index = np.stack([n.index for n in nearest.values()])[space, rows]
        names = np.array(list(nearest))[space]
        suspicion = ratios.min(0)
        copied = taken_for_copies(suspicion, self.validation_suspicion)
        return Examination(nearest, over_95, over_99, suspicion, copied, names, index)

    @property
    def validation_suspicion(self) -> np.ndarray:
        """What `Examination.suspicion` is of the validation images, float (K,)."""
        return self._relative_ratios(self.validation).min(0)

    def _relative_ratios(self, nearest: dict[str, Nearest]) -> np.ndarray:
        """Ratios (spaces, N) over the limit of the space, so that those of two spaces can be compared."""
        limits = {space: _quantile(n.ratio, VERDICT_RATE) for space, n in self.validation.items()}
        return np.stack([n.ratio / limits[space] for space, n in nearest.items()])


def audit(detector: CopyDetector, images: np.ndarray, examination: Examination | None = None) -> dict:
    """Say in numbers for JSON what `detector` makes of synthetic images (N, C, H, W).

    Each share is an `Estimate` beside the share `expected` of real images never trained on. `copies` is the verdict,
    with the number of distinct training images copied, and of images that are `sure`ly copies: a few of those are lost in
    the share. `not_sought` are the searches that the detector left out. `validation_copies` are validation images that surely are copies themselves: pictures that the split has in both
    parts, turned or cropped. `worst_pairs` are the 16 most suspicious, by their rows in `images` and in training. examination: of these
    images, where there is one already.
    """
    found = detector.examine(images) if examination is None else examination
    return {
        "images": len(images),
        "training_images": len(detector.training),
        "validation_images": len(detector.validation_suspicion),
        "validation_copies": surely_copies(detector.validation_suspicion, detector.validation_suspicion),
        "not_sought": [name for name in SEARCHES if name not in detector.searches],
        "copies": verdict(found.suspicion, detector.validation_suspicion, found.index),
        **{space: _numbers(nearest, detector.validation[space]) for space, nearest in found.nearest.items()},
        "worst_pairs": [_pair(found, row) for row in _worst(found, 16)],
    }


def taken_for_copies(suspicion: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Which images (N,) are taken for copies: bool (N,), where 5 % of real images are as suspicious as that; their suspicions are (K,)."""
    return suspicion < _quantile(validation, VERDICT_RATE)


def verdict(suspicion: np.ndarray, validation: np.ndarray, index: np.ndarray) -> dict:
    """`copies` of `audit`, of images' suspicions (N,) and of real images' (K,); index: their nearest training images, (N,)."""
    copied = taken_for_copies(suspicion, validation)
    return {
        **share_under(suspicion, validation, VERDICT_RATE),
        "sure": surely_copies(suspicion, validation),
        "count": int(copied.sum()),
        "distinct_training_images": len(np.unique(index[copied])),
    }


def surely_copies(suspicion: np.ndarray, validation: np.ndarray) -> int:
    """How many images of suspicions (N,) are nearer to training than any of so many real images would be."""
    return int((suspicion < sure_limit(validation, len(suspicion))).sum())


def sure_limit(validation: np.ndarray, count: int) -> float:
    """Under which no suspicion of `count` real images lies, in 97.5 of 100 sets of them; `validation` (K,) are those of others.

    Logarithms of real images' suspicions are taken to be normal below their median, as those of scans are. Median and spread are by
    quantiles from the 10th on, so that copies which de-duplication left among the validation images do not move them much; the spread
    is enlarged, for few images only estimate it.
    """
    logarithms = np.log(validation.clip(1e-12))
    low, quarter, median = np.quantile(logarithms, [0.1, 0.25, 0.5])
    spread = max((median - quarter) / -norm.ppf(0.25), (median - low) / -norm.ppf(0.1), LEAST_SPREAD)
    spread *= 1 + 1 / math.sqrt(len(validation))
    return float(np.exp(median + spread * norm.ppf(FALSE_ALARM_RATE / count)))


def share_beyond(scores: np.ndarray, validation: np.ndarray, level: float) -> Estimate:
    """Share of scores (N,) over the `level` quantile of real images, which `validation` (K,) only estimates.

    Two errors add as squares (MOVER, Zou & Donner 2008): the share's own, exact binomial, and the quantile's, by the
    order statistics that enclose it 95 times in 100. An upper one beyond the K images (the 99th percentile, K < 368) is
    put as far beyond the largest as the lower one lies below it; where less than two of K are expected over the
    quantile there is none, and the interval goes down to 0. Of simulated intervals (normal, exponential and t scores,
    K from 20 to 272, N from 200 to 2000) 94.5 to 100 % hold the true share.
    """
    ordered, count = np.sort(validation), len(validation)
    over = int((scores > _quantile(validation, level)).sum())
    low, high = binom.ppf([0.025, 0.975], count, level).astype(int)  # how many may lie below the quantile
    below = ordered[low - 1] if low else -np.inf
    beyond = 2 * ordered[-1] - below if count * (1 - level) > 2 - 1e-9 else np.inf
    above = ordered[high] if high < count else beyond
    own, share = binomtest(over, len(scores)).proportion_ci(0.95), over / len(scores)
    down = math.hypot(share - own.low, share - np.mean(scores > above))
    up = math.hypot(own.high - share, np.mean(scores > below) - share)
    return Estimate(share, max(0.0, share - down), min(1.0, share + up), len(scores))


def worst_pairs_picture(
    detector: CopyDetector, examination: Examination, images: np.ndarray, count: int = 16
) -> Image.Image:
    """Show the most suspicious pairs, channel by channel: synthetic | its training image, moved as found | their difference."""
    rows, channels = _worst(examination, count), images.shape[1]
    side, columns = max(96, images.shape[3]), min(max(1, 4 // channels), len(rows))
    height, width = round(side * images.shape[2] / images.shape[3]), 3 * channels * side + 16
    canvas = Image.new("L", (columns * width, -(-len(rows) // columns) * (height + 36)))
    draw = ImageDraw.Draw(canvas)
    for place, row in enumerate(rows):
        x, y = place % columns * width, place // columns * (height + 36)
        pair = _pair(examination, row)
        real = laid_on(np.asarray(detector.training[pair["training_image"]]), pair)
        image = np.asarray(images[row])  # (C, H, W)
        triples = np.stack([image, real, np.abs(image - real)], axis=1)  # (C, 3, H, W)
        for part, picture in enumerate(triples.reshape(-1, *triples.shape[2:])):
            pixels = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
            canvas.paste(pixels.resize((side, height)), (x + part * side, y))
        verdict = "taken for a copy" if examination.flagged[row] else "not taken for one"
        draw.text((x + 2, y + height + 2), f"{row} : {pair['training_image']} {verdict}", fill=255)
        draw.text(
            (x + 2, y + height + 17), f"{pair['space']} {pair['similarity']:.4f}{spelled(pair)}", fill=255
        )
    return canvas


def laid_on(real: np.ndarray, pair: dict) -> np.ndarray:
    """A training image (C, H, W) as it lies on the image of its pair: flipped, turned, enlarged and moved as `Nearest.how` says."""
    real = real[..., ::-1] if pair.get("flipped") else real
    turn, scale = math.radians(pair.get("degrees", 0)), pair.get("scale", 1)
    back = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / scale
    centre = (np.array(real.shape[1:]) - 1) / 2
    offset = centre - back @ (centre + pair.get("shift", (0, 0)))
    return np.stack([affine_transform(channel, back, offset, order=1) for channel in real])


def spelled(pair: dict) -> str:
    """How a training image lies on the image of its pair, in words."""
    how = {
        "flipped": "flipped" * pair.get("flipped", False),
        "degrees": f"turned {pair.get('degrees', 0):.0f}",
        "scale": f"scaled {pair.get('scale', 1):.2f}",
        "shift": f"moved {[round(by) for by in pair.get('shift', ())]}",
        "region": f"at {pair.get('region', [])[:2]}",
        "mixed_with": f"and {pair.get('mixed_with')}",
    }
    return "".join(f", {words}" for name, words in how.items() if name in pair and words)


def _nearest_in_each(images, training, searches, embed, training_features) -> dict[str, Nearest]:
    found = {name: SEARCHES[name](images, training, progress=len(images) > 200) for name in searches}
    if embed is not None:
        found["embedding"] = nearest_by_embedding(embed(images), training_features)
    return found


def _worst(examination: Examination, count: int) -> list[int]:
    return np.argsort(examination.suspicion, kind="stable")[:count].tolist()


def _pair(examination: Examination, row: int) -> dict:
    space = str(examination.space[row])
    nearest = examination.nearest[space]
    return {
        "image": row,
        "training_image": int(nearest.index[row]),
        "space": space,
        "similarity": float(nearest.similarity[row]),
        "ratio": float(nearest.ratio[row]),
        **{name: values[row].tolist() for name, values in nearest.how.items()},
    }


def _numbers(nearest: Nearest, validation: Nearest) -> dict:
    return {
        "similarity_over_95th_percentile": _share(nearest.similarity, validation.similarity, 0.95),
        "similarity_over_99th_percentile": _share(nearest.similarity, validation.similarity, 0.99),
        "median_similarity": _median(nearest.similarity),
        "validation_median_similarity": _median(validation.similarity),
        "ratio_under_1st_percentile": share_under(nearest.ratio, validation.ratio, 0.01),
        "median_ratio": _median(nearest.ratio),
        "validation_median_ratio": _median(validation.ratio),
    }


def _share(scores: np.ndarray, validation: np.ndarray, level: float) -> dict:
    return {"share": share_beyond(scores, validation, level).as_dict(), "expected": round(1 - level, 4)}


def share_under(ratios: np.ndarray, validation: np.ndarray, rate: float) -> dict:
    """Share of images (N,) under that quantile of real ones (K,), as it stands in an audit."""
    return _share(-ratios, -validation, 1 - rate)


def _quantile(validation: np.ndarray, level: float) -> float:
    """The order statistic (K + 1) * level, which the share 1 - level of other real images exceeds."""
    return float(np.quantile(validation, level, method="weibull"))


def _median(values: np.ndarray) -> dict:
    """The median between the order statistics that enclose it 95 times in 100; of few values, between all."""
    ordered, skipped = np.sort(values), max(int(binom.ppf(0.025, len(values), 0.5)) - 1, 0)
    low, high = ordered[skipped], ordered[-1 - skipped]
    return Estimate(float(np.median(values)), float(low), float(high), len(values)).as_dict()
