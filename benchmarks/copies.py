"""Which altered copies does the audit find? Training scans are altered and given as synthetic images; real ones tell the false alarms.

The limits are from half of the validation scans. The other half, and the published test part, are honest images. The verdict is by all searches
without an embedding, and by each alone. Then sets of 2000 images are drawn with some copies among them, to see how often the verdict is red.

    python -m benchmarks.copies --train_data_dir DIR --resolution 32 44 64 --output copies.json

Expected, written down before the measurement: every kind at 0.95 or more, but for noise of 0.10 at 32 pixels, and mixtures with an unseen scan;
honest scans at 0.05; turned copies at 0.1 % of 2000 images found at 44 and 64 pixels, and 80 % of the time at 32.
"""

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter, shift

from mri_ddpm.data import draw_phantoms, load_scans
from mri_ddpm.evaluation.memorisation import SEARCHES, CopyDetector, surely_copies, verdict
from mri_ddpm.evaluation.subject import as_arrays

DRAWS, SET_SIZE = 300, 2000


def controls(x: np.ndarray, others: np.ndarray, unseen: np.ndarray, rng: np.random.Generator) -> dict:
    """What copies may look like: by name the images ``(N, 1, H, H)`` altered; others are in training, unseen ones are not."""
    n, side = len(x), x.shape[-1]
    signs, one = rng.choice([-1, 1], n), np.ones(n)

    def noisy(images: np.ndarray, sigma: float) -> np.ndarray:
        return images + sigma * rng.standard_normal(images.shape)

    altered = {
        "as they are": x,
        "mirrored": x[..., ::-1],
        "moved by up to 2 pixels": np.stack(
            [
                shift(image, (0, *by), order=0)
                for image, by in zip(x, rng.integers(-2, 3, (n, 2)), strict=True)
            ]
        ),
        "noise of 0.05": noisy(x, 0.05),
        "noise of 0.10": noisy(x, 0.10),
        "other contrast": rng.uniform(0.7, 1.3, (n, 1, 1, 1)) * x + rng.uniform(-0.1, 0.1, (n, 1, 1, 1)),
        "gamma of 0.75 to 1.33": x ** rng.uniform(0.75, 1.33, (n, 1, 1, 1)),
        "JPEG of quality 50 to 75": np.stack(
            [as_jpeg(image, quality) for image, quality in zip(x, rng.integers(50, 76, n), strict=True)]
        ),
        "blurred by 0.5 pixels": gaussian_filter(x, (0, 0, 0.5, 0.5)),
        "blurred by 1 pixel": gaussian_filter(x, (0, 0, 1, 1)),
        "turned by 5 degrees": turned(x, 5 * signs),
        "turned by 10 degrees": turned(x, 10 * signs),
        "turned by 15 degrees": turned(x, 15 * signs),
        "cropped by 5 %": turned(x, 0 * one, one / 0.95),
        "cropped by 10 %": turned(x, 0 * one, one / 0.9),
        "smaller by 10 %": turned(x, 0 * one, 0.9 * one),
        "larger by 10 %": turned(x, 0 * one, 1.1 * one),
        "mirrored, turned by 10 degrees, cropped by 5 %": turned(x[..., ::-1], 10 * signs, one / 0.95),
        "mixed 90:10 with another": 0.9 * x + 0.1 * others,
        "mixed 70:30 with another": 0.7 * x + 0.3 * others,
        "mixed 50:50 with another": 0.5 * x + 0.5 * others,
        "mixed 70:30 with an unseen scan": 0.7 * x + 0.3 * unseen,
        "half, beside half of an unseen scan": np.concatenate(
            [x[..., : side // 2], unseen[..., side // 2 :]], axis=3
        ),
        "a quarter, in an unseen scan": quarters(x, unseen, rng),
    }
    return {name: images.clip(0, 1).astype(np.float32) for name, images in altered.items()}


def turned(x: np.ndarray, degrees: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
    """Images turned counter-clockwise about the centre and enlarged, by splines; outside is black."""
    scales = np.ones(len(x)) if scales is None else scales
    done = []
    for image, angle, scale in zip(x[:, 0], np.radians(degrees), scales, strict=True):
        centre = (np.array(image.shape) - 1) / 2
        back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
        done.append(affine_transform(image, back, centre - back @ centre, order=3))
    return np.stack(done)[:, None].clip(0, 1).astype(np.float32)


def quarters(x: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other images, in each a square of half the side from an image, anywhere but at the border, where scans are black."""
    side, done = x.shape[-1], others.copy()
    for image, other in zip(x, done, strict=True):
        top, left = rng.integers(side // 8, side // 2 - side // 8 + 1, 2)
        square = np.s_[:, top : top + side // 2, left : left + side // 2]
        other[square] = image[square]
    return done


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """An image ``(1, H, W)``, stored and read."""
    file = io.BytesIO()
    Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file), dtype=np.float32)[None] / 255


def alarms(real: np.ndarray, copies: dict[str, np.ndarray], limits: int) -> dict:
    """How often the verdict is red for sets of 2000 images, of suspicions; so many real ones at a time set the limits."""
    rng, found = np.random.default_rng(0), {}
    cases = [("none", 0), *((kind, n) for kind in copies for n in (2, 20, 100))]
    for kind, count in cases:
        red = 0
        for _ in range(DRAWS):
            order = rng.permutation(real)
            planted = rng.choice(copies[kind], count) if count else []
            images = np.concatenate([rng.choice(order[limits:], SET_SIZE - count), planted])
            result = verdict(images, order[:limits], np.zeros(SET_SIZE, int))
            red += result["sure"] > 0 or result["share"]["interval"][0] > result["expected"]
        found[f"{kind}, {count} of {SET_SIZE}"] = red / DRAWS
    return found


def measure(train_data_dir: str, resolution: int, count: int) -> dict:
    """All of it at one size."""
    scans = load_scans(train_data_dir=train_data_dir, resolution=resolution)
    training, validation, test = (
        np.asarray(as_arrays(part)[0]) for part in (scans.train, scans.validation, scans.test)
    )
    rng = np.random.default_rng(0)
    order = rng.permutation(len(validation))
    held, others = validation[order[::2]], validation[order[1::2]]
    start = time.process_time()
    detector = CopyDetector.fit(training, held)
    seconds = (time.process_time() - start) / len(held)
    rows = rng.permutation(len(training))[: 2 * count]
    altered = controls(training[rows[:count]], training[rows[count:]], others[:count], rng)
    altered |= {"validation scans": others, "the published test part": test}
    phantoms = np.stack(draw_phantoms(count, resolution, 0)[0]).astype(np.float32)[:, None]
    altered |= {"phantoms": phantoms, "noise": rng.random(phantoms.shape, dtype=np.float32)}
    shares, suspicions = {}, {}
    for name, images in altered.items():
        found = detector.examine(images)
        alone = {
            space: float(
                (n.ratio < np.quantile(detector.validation[space].ratio, 0.05, method="weibull")).mean()
            )
            for space, n in found.nearest.items()
        }
        suspicions[name] = found.suspicion
        sure = surely_copies(found.suspicion, detector.validation_suspicion)
        shares[name] = {"n": len(images), "share": float(found.flagged.mean()), "sure": sure, **alone}
        print(resolution, name, shares[name], flush=True)
    real = np.concatenate([detector.validation_suspicion, suspicions["validation scans"]])
    honest = np.sort(real)[surely_copies(real, real) :]
    turns = np.concatenate([suspicions[f"turned by {degrees} degrees"] for degrees in (5, 10, 15)])
    return {
        "resolution": resolution,
        "seconds_per_image": round(seconds, 3),
        "shares": shares,
        "validation_copies": surely_copies(real, real),
        "alarms": alarms(honest, {"exact": suspicions["as they are"], "turned": turns}, len(honest) // 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--resolution", type=int, nargs="+", default=[32, 44, 64])
    parser.add_argument("--num_images", type=int, default=100, help="of each kind (100)")
    parser.add_argument("--output", type=Path, default=Path("copies.json"))
    args = parser.parse_args()
    found = [measure(args.train_data_dir, side, args.num_images) for side in args.resolution]
    args.output.write_text(json.dumps({"searches": list(SEARCHES), "measured": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
