"""Does a model do what its condition says? Masks, pairs of scan and mask, contrasts, and lower resolutions, each beside its rivals.

    mri-ddpm train --channels t1 --condition_on seg --mask_label_dropout_prob 0.5 --output_dir runs/mask
    python benchmarks/conditions.py mask runs/mask

Scans are those of the run, of the phantom or of ``--train_data_dir``. All that is measured is measured on its validation
scans, which chose nothing. Rows go to ``conditions.json``, with what was expected of them, and a picture to ``conditions.png`` in the run's folder.
"""

import argparse
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mri_ddpm.pipelines.pipeline_mri_ddpm import label_values
from rivals import (
    dice,
    found_by,
    mean_of_images,
    psnr,
    regression,
    restored_by,
    ssim,
    train_segmenter,
)

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import ScanDataset
from mri_ddpm.evaluation.estimates import percentile_interval, resampling_counts
from mri_ddpm.evaluation.subject import load_real_scans
from mri_ddpm.files import read_json, write_json
from mri_ddpm.runs import load_pipeline, load_record
from mri_ddpm.sampling import SamplingOptions, set_scheduler
from mri_ddpm.sampling.batches import sample_batches
from mri_ddpm.sampling.sheets import sheet
from mri_ddpm.training.device import keep_freed_memory

SCHEDULER, STEPS = "dpmsolver++", 10
# Of pairs, which no condition holds: the sampler that drew best (docs/results/recipe_search.jsonl)
PAIRS_SCHEDULER, PAIRS_OPTIONS = "dpmsolver++sde", {"num_inference_steps": 20, "guidance_scale": 1.5}
FEW_STEPS = (1, 2, 4, 10, 50)
REPEATS, REPEATED_STEPS = (
    8,
    4,
)  # samples of one condition, for their mean and spread; SynDiff's number of steps
SEGMENTER_SEEDS = (0, 1, 2)
SHOWN = 8  # rows of a picture
BRIGHT = 0.1  # pixels of the truth over this are looked at for errors: the rest is air
# Written before anything was measured
EXPECTED = {
    "mask": {
        "validation scans": "lesion 0.75, brain 0.93, ventricle 0.75: small lesions at 32 x 32",
        "whole mask": "lesion 0.68, nine tenths of what is found in scans",
        "whole mask, guidance 2": "a little above guidance 1; perhaps above scans, for guidance exaggerates",
        "lesion alone": "0.60 with labels left out in training, 0.45 without",
        "class alone": "0.1, by chance",
    },
    "pairs": {
        "real": "lesion 0.65 from 200 scans",
        "synthetic": "80 to 90 % of real, as published",
        "both": "0.02 above real",
    },
    "contrast": {
        "naive": "a copy with matched histogram: 15 dB",
        "regression": "27 dB, the best by PSNR",
        "samples": "25 dB at 10 steps; best at 2 to 4 steps, worst at 50; the mean of 8 by 4 steps within 0.5 dB of the regression",
        "spread": "correlates with the error by 0.4",
    },
    "lowres": {
        "naive": "bicubic: 20 dB",
        "regression": "23 dB",
        "samples": "21.5 dB at 10 steps, the mean of 8 by 4 steps 22.7 dB",
        "spread": "correlates with the error by 0.3",
    },
}


class Subject:
    """A run, its scans, and what it samples. N: images, H, W: the resolution."""

    def __init__(self, args: argparse.Namespace):
        self.folder, self.name = Path(args.run), Path(args.run).name
        self.record, self.pipeline = load_record(args.run), load_pipeline(args.run, "cpu")
        where = {"train_data_dir": args.train_data_dir}
        real = load_real_scans(self.record, where, self.pipeline.unet.config.sample_size)
        self.training, self.validation = real.scans["training"], real.scans["validation"]
        self.channels = self.training.channels
        self.count = min(args.num_images, len(self.validation))
        self.classes = self.validation.class_labels[: self.count]

    @cached_property
    def config(self) -> TrainingConfig:
        return TrainingConfig(**self.record.config)

    def arrays(self, scans: ScanDataset, count: int | None = None) -> dict[str, np.ndarray]:
        """The first scans by the names of their channels and conditions, ``(N, H, W)``; of masks the labels' places, from 1."""
        batch = scans.batch(range(len(scans) if count is None else count))
        parts = [batch[name].numpy() for name in ("pixel_values", "condition") if name in batch]
        planes, found, start = np.concatenate(parts, axis=1), {}, 0
        for name in (*(self.channels.drawn or ("",)), *self.channels.given):
            width = self.channels.width((name,))
            places = np.arange(1, width + 1, dtype=np.float32)[:, None, None]
            found[name] = (planes[:, start : start + width] * places).sum(1)
            start += width
        return found

    def condition(self, count: int, kept: slice = slice(None)) -> dict[str, np.ndarray]:
        """What the first validation scans give, by name, of which only these channels are kept."""
        planes = self.validation.batch(range(count))["condition"].numpy()
        others = np.setdiff1d(np.arange(planes.shape[1]), np.arange(planes.shape[1])[kept])
        planes[:, others] = 0
        return self.channels.by_name(planes)

    def sample(
        self, count: int, classes: np.ndarray, condition: dict | None, scheduler: str = SCHEDULER, **options
    ) -> dict[str, np.ndarray]:
        """Samples by channel, ``(N, H, W)``, each of its class and condition; masks as of `arrays`."""
        options = SamplingOptions(**{"num_inference_steps": STEPS, **options})
        set_scheduler(self.pipeline, scheduler)
        names = [self.pipeline.class_names[i] for i in classes] if self.pipeline.class_names else None
        batches = sample_batches(self.pipeline, names, count, options, output_type="np", condition=condition)
        outputs = [output.by_channel for _, output in batches]
        found = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
        for name in found.keys() & self.channels.mask_labels.keys():
            values = label_values(self.channels.mask_labels[name])
            found[name] = sum(place * (found[name] == value) for place, value in enumerate(values, start=1))
        return found


def measure_mask(subject: Subject, args: argparse.Namespace) -> tuple[dict, dict]:
    """Dice between the mask that was asked for and what a segmenter of training scans finds in the sample."""
    (drawn,), (given,) = subject.channels.drawn, subject.channels.given
    labels = subject.channels.mask_labels[given]
    scans, real = subject.arrays(subject.training), subject.arrays(subject.validation, subject.count)
    everything = [np.arange(len(subject.training))]
    segmenter = train_segmenter(scans[drawn], scans[given], everything, len(labels), 0, args.segmenter_steps)
    asked, whole = real[given], subject.condition(subject.count)
    lesion = subject.condition(subject.count, slice(-1, None))  # the last label
    everywhere, somewhere = np.arange(subject.count), np.flatnonzero((asked == len(labels)).any((1, 2)))
    ways = {  # without a lesion, the lesion alone is an empty mask
        "whole mask": (whole, everywhere, {}),
        "whole mask, guidance 2": (whole, everywhere, {"guidance_scale": 2.0}),
        "lesion alone": (lesion, somewhere, {}),
        "lesion alone, guidance 2": (lesion, somewhere, {"guidance_scale": 2.0}),
        "class alone": ({}, everywhere, {}),
    }
    images = {"validation scans": real[drawn]}
    for name, (condition, heads, options) in ways.items():
        given_to = {key: planes[heads] for key, planes in condition.items()} or None
        images[name] = np.zeros_like(real[drawn])
        images[name][heads] = subject.sample(len(heads), subject.classes[heads], given_to, **options)[drawn]
    rows = {}
    for name, of_row in images.items():
        found = found_by(segmenter, of_row)
        rows[name] = {
            label: mean_of_images(dice(asked, found, number)).as_dict()
            for number, label in labels_in(asked, labels)
            if name.startswith(("validation", "whole")) or label == labels[-1]
        }
    titles = {
        "validation scans": "scan",
        "whole mask": "sample",
        "whole mask, guidance 2": "guidance 2",
        "lesion alone": "lesion alone",
        "class alone": "class alone",
    }
    return rows, {"mask": asked / len(labels), **{title: images[name] for name, title in titles.items()}}


def measure_pairs(subject: Subject, args: argparse.Namespace) -> tuple[dict, dict]:
    """Dice on unseen scans of segmenters that learnt from training scans, from samples, and from both, by as many steps."""
    image, mask = subject.channels.drawn
    labels = subject.channels.mask_labels[mask]
    scans, real = subject.arrays(subject.training), subject.arrays(subject.validation)
    classes = np.resize(subject.training.class_labels, args.num_pairs)
    made = subject.sample(args.num_pairs, classes, None, PAIRS_SCHEDULER, **PAIRS_OPTIONS)
    images, masks = (np.concatenate([scans[name], made[name]]) for name in (image, mask))
    own, synthetic = np.split(np.arange(len(images)), [len(scans[image])])
    rows, lesion = {}, {}
    for name, parts in {"real": [own], "synthetic": [synthetic], "both": [own, synthetic]}.items():
        networks = [
            train_segmenter(images, masks, parts, len(labels), s, args.segmenter_steps)
            for s in SEGMENTER_SEEDS
        ]
        found = [found_by(network, real[image]) for network in networks]
        of_label = {
            label: np.mean([dice(real[mask], f, number) for f in found], axis=0)
            for number, label in labels_in(real[mask], labels)
        }
        rows[name], lesion[name] = (
            {label: mean_of_images(v).as_dict() for label, v in of_label.items()},
            list(of_label.values())[-1],
        )
    rows["lesion, of real"] = {
        name: share_of(lesion[name], lesion["real"]) for name in ("synthetic", "both")
    } | {"segmenters": len(SEGMENTER_SEEDS), "scans": len(own), "pairs": len(synthetic)}
    has_lesion = (made[mask] == len(labels)).any((1, 2))
    rows["lesion, of real"]["pairs with a lesion"] = float(has_lesion.mean())
    pairs = {"scan": scans, "sample": made}
    return rows, {
        f"{kind} {name}": arrays[name] / (len(labels) if name == mask else 1)
        for kind, arrays in pairs.items()
        for name in (image, mask)
    }


def labels_in(masks: np.ndarray, labels: tuple[str, ...]) -> list[tuple[int, str]]:
    """The labels that any of the masks has, each with its place."""
    return [(place, label) for place, label in enumerate(labels, start=1) if (masks == place).any()]


def share_of(values: np.ndarray, reference: np.ndarray) -> dict:
    """Ratio of two means over the same images, with the interval of a bootstrap of these."""
    known = ~np.isnan(values + reference)
    a, b = values[known], reference[known]
    counts = resampling_counts(len(a), np.random.default_rng(0))
    interval = percentile_interval((counts @ a) / (counts @ b))
    return {"value": float(a.mean() / b.mean()), "interval": list(interval), "n": len(a)}


def measure_restored(subject: Subject, args: argparse.Namespace) -> tuple[dict, dict]:
    """PSNR and SSIM to the scan itself, of samples by few and many steps, their mean, a regression, and what needs no training."""
    (given,) = subject.channels.given
    drawn, n = (subject.channels.drawn or ("",))[0], subject.count
    real, scans = subject.arrays(subject.validation, n), subject.arrays(subject.training)
    truth, condition = real[drawn], subject.condition(n)
    network = regression(
        subject.pipeline.unet, subject.training, subject.config, subject.folder / "regression"
    )
    naive, title = rival_without_training(given, condition[given], scans[given], scans[drawn])
    images = {title: naive, "regression": restored_by(network, subject.validation, n)}
    for steps in FEW_STEPS:
        name = "1 step" if steps == 1 else f"{steps} steps"
        images[name] = subject.sample(n, subject.classes, condition, num_inference_steps=steps)[drawn]
    steps = {"num_inference_steps": REPEATED_STEPS}
    again = [
        subject.sample(n, subject.classes, condition, seed=i * n, **steps)[drawn] for i in range(1, REPEATS)
    ]
    several = np.stack([images[f"{REPEATED_STEPS} steps"], *again])  # (REPEATS, N, H, W)
    images[f"mean of {REPEATS}, {REPEATED_STEPS} steps"] = several.mean(0)
    rows = {
        name: {
            "psnr": mean_of_images(psnr(truth, x)).as_dict(),
            "ssim": mean_of_images(ssim(truth, x)).as_dict(),
        }
        for name, x in images.items()
    }
    spread, error = several.std(0, ddof=1), np.abs(several.mean(0) - truth)
    rows["spread and error"] = {
        "correlation": mean_of_images(correlation(spread, error, truth > BRIGHT)).as_dict()
    }
    shown = {
        name.split(",")[0]: x for name, x in images.items() if name not in (title, "2 steps", "10 steps")
    }
    return rows, {
        "given": real[given],
        "scan": truth,
        title.split()[-1]: naive,
        **shown,
        "spread x 5": 5 * spread,
        "error x 5": 5 * error,
    }


def rival_without_training(
    given: str, of_scan: np.ndarray, others: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, str]:
    """Bicubic interpolation of a lower resolution; of a contrast a copy, its grey levels matched to those of training scans."""
    if of_scan.shape[-1] < target.shape[-1]:
        small = torch.from_numpy(of_scan)[:, None].float()
        large = F.interpolate(small, size=target.shape[-2:], mode="bicubic", align_corners=False)
        return large[:, 0].clamp(0, 1).numpy(), "bicubic"
    levels = np.linspace(0, 1, 256)
    matched = np.interp(of_scan, np.quantile(others, levels), np.quantile(target, levels))
    return matched.astype(np.float32), f"{given} with matched histogram"


def correlation(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Pearson's correlation of two images over the pixels where a third is true, each by itself, ``(N,)``."""
    return np.array([np.corrcoef(x[w], y[w])[0, 1] for x, y, w in zip(a, b, where, strict=True)])


PARTS: dict[str, Callable] = {
    "mask": measure_mask,
    "pairs": measure_pairs,
    "contrast": measure_restored,
    "lowres": measure_restored,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("run", help="folder of a training")
    parser.add_argument("--train_data_dir", help="the scans of the run, where it is not of the phantom")
    parser.add_argument("--num_images", type=int, default=200, help="validation scans that are followed")
    parser.add_argument("--num_pairs", type=int, default=1000)
    parser.add_argument("--segmenter_steps", type=int, default=500)
    parser.add_argument("--results", type=Path, help="conditions.json in the run's folder when not given")
    args = parser.parse_args()
    keep_freed_memory(torch.device("cpu"))
    rows, shown = PARTS[args.part](Subject(args), args)
    images = [np.clip(column[:SHOWN], 0, 1)[:, None] for column in shown.values()]
    sheet(np.stack(images), list(shown)).save(Path(args.run) / "conditions.png")
    path = args.results or Path(args.run) / "conditions.json"
    results = read_json(path) if path.exists() else {}
    results.setdefault(args.part, {"expected": EXPECTED[args.part]})[Path(args.run).name] = rows
    write_json(path, results)


if __name__ == "__main__":
    main()
