"""Does it help to begin from a model that is there? A class of few scans, from nothing, from a base, and with all from the start.

The base is trained on the classes but one. Of that one 25, 50, 100 and 400 scans are taken, at equal steps in every way of
`WAYS`. Each model is sampled and measured: quality of the new class and of the old ones (wavelet KID and Fréchet distance to all
training scans of the class; of the old ones before and after), what the samples add to a classifier that has as many real scans of
the new class (recall on validation scans), and copies. One JSON line for each goes to ``results.jsonl``; what is there already is
not made again, and what was cut short is resumed.

    python -m benchmarks.finetuning --train_data_dir DIR --output_dir runs/finetuning [--ways NAME ...] [--seeds 0 1 2]

Each way says what was expected of it before it was trained.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from mri_ddpm.data import load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation import classifier
from mri_ddpm.evaluation.features import make_extractor
from mri_ddpm.evaluation.memorisation import CopyDetector, audit
from mri_ddpm.evaluation.quality import detail_ratio, frechet_distance, kid
from mri_ddpm.evaluation.subject import as_arrays
from mri_ddpm.evaluation.usefulness import compare
from mri_ddpm.evaluation.wavelets import WaveletFeatures
from mri_ddpm.files import read_json_lines
from mri_ddpm.runs import load_pipeline
from mri_ddpm.sampling import SamplingOptions, sample_arrays
from mri_ddpm.sampling.sheets import sheet

from .trained import train

BASE = "pretrained_model_name_or_path"
FAST = {"learning_rate": 1.5e-3}  # as from nothing; the default with a base is 2e-4
WAYS = {  # name -> scans, flags with the base they begin from, and what was expected
    "nothing": (
        "new",
        {},
        "with 25 and 50 scans heads without anatomy, or copies; at 400 as good as the others",
    ),
    "nothing-longer": (
        "new",
        {},
        "at 25 scans copies, half of the samples or more: each scan is shown 832 times; a wavelet KID of 0.45",
    ),
    "whole": (
        "new",
        {BASE: "base", **FAST},
        "far better than nothing up to 100 scans; the old classes drift towards the new one",
    ),
    "whole-low-rate": (
        "new",
        {BASE: "base"},
        "fewer copies and less drift than whole at 25 and 50",
    ),
    "lora": ("new", {BASE: "base", "train_only": "lora"}, "between norms and whole; best of all at 25"),
    "norms": ("new", {BASE: "base", "train_only": "norms"}, "no copies; lesions of the old classes remain"),
    "kept": (
        "new",
        {BASE: "base", "keep_old_share": 0.5, **FAST},
        "as whole for the new class; the old ones stay within the interval",
    ),
    "kept-low-rate": (
        "new",
        {BASE: "base", "keep_old_share": 0.5},
        "the old classes at 0.3 to 0.4, the new one a little worse than whole-low-rate, for it has half of the steps",
    ),
    "phantom": ("new", {BASE: "phantom", **FAST}, "better than nothing at 25 and 50; no better from 100 on"),
    "phantom-low-rate": (
        "new",
        {BASE: "phantom"},
        "better than nothing, worse than phantom: the way is too far for so low a rate",
    ),
    "phantom-other-name": (
        "other",
        {BASE: "phantom"},
        "a little worse than phantom-low-rate, whose class of that name has its lesion in the right place: 0.35 to 0.4 at 25",
    ),
    "all": ("all", {}, "best for old and new, for it sees all real scans all the time"),
}
LONGER = ("nothing-longer", "all")  # trained for the steps of the base too
SAMPLER = {"scheduler": "dpmsolver++sde", "num_inference_steps": 10, "guidance_scale": 1.5}
OTHER = "other_lesion"  # the new class by a name that no base knows
SHOWN = 8  # samples of each class in a picture
SHOWN_LOSS = 0.05  # the highest in a plot: from nothing it begins far above


def write_folders(args: argparse.Namespace, folder: Path) -> tuple:
    """Folders of links to the scans: the old classes, the new one with so many of each seed, by its name and by `OTHER`, and both.

    All have one validation part.

    Returns:
        The whole set, by whose split they go.
    """
    scans = load_scans(train_data_dir=args.train_data_dir, resolution=args.resolution)
    if args.new_class not in scans.class_names:
        raise InputError(f"--new_class {args.new_class} is none of: {', '.join(scans.class_names)}.")
    files = [f for f in scans.manifest["files"] if f["split"] in ("train", "validation")]
    old = [f for f in files if f["class"] != args.new_class]
    new = [f for f in files if f["class"] == args.new_class]
    train, validation = ([f for f in new if f["split"] == part] for part in ("train", "validation"))

    def link(name: str, chosen: list[dict], class_name: str | None = None) -> None:
        for number, file in enumerate(chosen):
            part = {"train": "train", "validation": "val"}[file["split"]]
            source = Path(args.train_data_dir, scans.paths[file["path"]]).resolve()
            target = folder / name / part / (class_name or file["class"]) / f"{number:05d}{source.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(source)

    link("old", old)
    for seed in args.seeds:
        for count in args.counts:
            chosen = [train[i] for i in few(len(train), count, seed)] + validation
            link(f"new-{count}-{seed}", chosen)
            link(f"other-{count}-{seed}", chosen, OTHER)
            link(f"all-{count}-{seed}", old + chosen)
    return scans


def few(total: int, count: int, seed: int) -> np.ndarray:
    """Which of so many training scans are taken."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def validated(steps: int) -> dict:
    """Flags of a training of so many steps: ten validations."""
    return {"max_train_steps": steps, "validation_steps": max(1, steps // 10)}


class Yardstick:
    """What is measured of a model, against all real scans of the set."""

    def __init__(self, scans, args: argparse.Namespace):
        self.args, self.names = args, scans.class_names
        self.new = self.names.index(args.new_class)
        self.training, self.labels = (np.asarray(part) for part in as_arrays(scans.train))
        self.validation, self.validation_labels = (np.asarray(part) for part in as_arrays(scans.validation))
        self.wavelets = WaveletFeatures.fit(self.training)
        self.features = make_extractor("in_domain", self.training, self.labels, self.names)
        # The same for every way, by number of scans and seed
        self.without_samples: dict[tuple[int, int], np.ndarray] = {}
        self.detectors: dict[tuple[int, int], CopyDetector] = {}

    def quality(self, images: np.ndarray, label: int) -> dict:
        """Of samples of a class against its training scans, beside what its validation scans score."""
        reference = self.training[self.labels == label]
        scores = {
            "wavelet_kid": lambda x: kid(self.wavelets(reference), self.wavelets(x)),
            "wavelet_frechet_distance": lambda x: frechet_distance(
                self.wavelets(reference), self.wavelets(x)
            ),
            "detail_ratio": partial(detail_ratio, reference),
        }
        found = {}
        for name, score in scores.items():
            for key, x in (("", images), ("_of_real", self.validation[self.validation_labels == label])):
                try:
                    found[name + key] = score(x).as_dict()
                except InputError as error:
                    found[name + key] = str(error)
        return found

    def trained_on(self, count: int, seed: int) -> np.ndarray:
        """Rows of all scans of the old classes and of the few of the new one."""
        new = np.flatnonzero(self.labels == self.new)
        return np.concatenate([np.flatnonzero(self.labels != self.new), new[few(len(new), count, seed)]])

    def usefulness(self, images: np.ndarray, count: int, seed: int) -> dict:
        """A classifier on the old classes and so many scans of the new one, each class drawn alike, with and without the samples."""
        rows = self.trained_on(count, seed)
        real, labels = self.training[rows], self.labels[rows]
        alike = (1 / np.bincount(labels, minlength=len(self.names)))[labels]
        both = np.concatenate([real, images]), np.append(labels, np.full(len(images), self.new))
        halved = np.append(
            np.where(labels == self.new, alike / 2, alike), np.full(len(images), 0.5 / len(images))
        )
        if (count, seed) not in self.without_samples:
            self.without_samples[count, seed] = self.predict(real, labels, alike)
        predictions = {"real": self.without_samples[count, seed], "with_samples": self.predict(*both, halved)}
        return compare(predictions, self.validation_labels, self.names)

    def predict(self, images: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """What classifiers that were trained on these take the validation scans for, a row each."""
        models = [
            classifier.train_classifier(images, labels, len(self.names), seed=i, weights=weights)
            for i in range(self.args.classifiers)
        ]
        return np.array([classifier.predict(model, self.validation) for model in models])

    def copies(self, images: np.ndarray, count: int, seed: int) -> dict | str:
        """Copies of the few scans, or of scans of the old classes."""
        try:
            if (count, seed) not in self.detectors:
                known = self.training[self.trained_on(count, seed)]
                self.detectors[count, seed] = CopyDetector.fit(known, self.validation, self.features)
            return audit(self.detectors[count, seed], images)["copies"]
        except InputError as error:
            return str(error)

    def measure(self, run: Path, count: int, seed: int, picture: Path) -> dict:
        """Everything of one model; it is sampled in the classes that it has."""
        pipeline = load_pipeline(str(run), "cpu")
        numbers = {name: i for i, name in enumerate(pipeline.class_names) if name in self.names}
        if OTHER in pipeline.class_names:
            numbers[self.args.new_class] = pipeline.class_names.index(OTHER)
        options = SamplingOptions(**SAMPLER, batch_size=50, seed=seed)
        options.prepare(pipeline, self.args.num_images, pipeline.class_names[0])
        counts = [self.args.num_images * (i in numbers.values()) for i in range(len(pipeline.class_names))]
        images, labels = sample_arrays(pipeline, counts, options)
        by_name = {name: images[labels == number] for name, number in numbers.items()}
        sheet(np.stack([x[:SHOWN] for x in by_name.values()], axis=1), [""] * SHOWN).save(picture)
        found = {"quality": {name: self.quality(x, self.names.index(name)) for name, x in by_name.items()}}
        if self.args.new_class in by_name and count:
            new = by_name[self.args.new_class]
            found |= {
                "usefulness": self.usefulness(new, count, seed),
                "copies": self.copies(new, count, seed),
            }
        rows = [row for row in read_json_lines(run / "metrics.jsonl") if "validation_loss_ema" in row]
        return found | {"validation": [[row["step"], row["validation_loss_ema"]] for row in rows]}


def plot_losses(rows: list[dict], path: Path) -> None:
    """Held-out loss of the new class against the step, a panel for each number of its scans, a line for each training."""
    rows = [row for row in rows if row["count"] and WAYS.get(row["way"], ("all",))[0] != "all"]
    counts, ways = (
        [*dict.fromkeys(sorted(values))]
        for values in zip(*((r["count"], r["way"]) for r in rows), strict=True)
    )
    figure = Figure(figsize=(3 * len(counts), 3.6), layout="constrained")
    for axes, count in zip(
        figure.subplots(1, len(counts), sharey=True, squeeze=False)[0], counts, strict=True
    ):
        for row in (row for row in rows if row["count"] == count):
            line = zip(*(point for point in row["validation"] if point[1] < SHOWN_LOSS), strict=True)
            axes.plot(*line, color=colormaps["tab20"](ways.index(row["way"])), alpha=0.8, label=row["way"])
        axes.set(title=f"{count} scans", xlabel="step")
        named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(named.values(), named.keys(), fontsize=7)
    figure.supylabel("held-out loss of the EMA weights")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--new_class", default="pituitary_tumor")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--counts", nargs="+", type=int, default=[25, 50, 100, 400])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--base_steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=1000, help="of every way, after the base")
    parser.add_argument("--num_images", type=int, default=300, help="samples of each class")
    parser.add_argument("--classifiers", type=int, default=3, help="trainings of the classifier a setting")
    args = parser.parse_args()
    args.train_data_dir, args.output_dir = str(Path(args.train_data_dir).resolve()), args.output_dir.resolve()
    results, folder = args.output_dir / "results.jsonl", args.output_dir / "scans"
    scans = write_folders(args, folder)
    yardstick = Yardstick(scans, args)
    done = {(row["way"], row["count"], row["seed"]) for row in read_json_lines(results)}

    def record(way: str, run: Path, count: int, seed: int, **more) -> None:
        if (way, count, seed) in done:
            return
        found = yardstick.measure(run, count, seed, args.output_dir / f"{run.name}.png")
        row = {"way": way, "count": count, "seed": seed, "num_images": args.num_images, **more, **found}
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:300], flush=True)

    common = {"preset": args.preset}
    for seed in args.seeds:
        bases = {name: args.output_dir / f"{name}-{seed}" for name in ("base", "phantom")}
        for name in {flags.get(BASE) for _, flags, _ in map(WAYS.get, args.ways)} - {None}:
            source = {} if name == "phantom" else {"train_data_dir": folder / "old"}
            size = {"resolution": args.resolution, "seed": seed}
            train(bases[name], {**common, **size, **source, **validated(args.base_steps)})
            record(name, bases[name], 0, seed, steps=args.base_steps)
        for count in args.counts:
            for way in args.ways:
                kind, flags, expected = WAYS[way]
                run = args.output_dir / f"{way}-{count}-{seed}"
                flags = (
                    {**flags, BASE: bases[flags[BASE]]}
                    if BASE in flags
                    else {**flags, "resolution": args.resolution}
                )
                total = args.steps + (args.base_steps if way in LONGER else 0)
                data = {"train_data_dir": folder / f"{kind}-{count}-{seed}", "seed": seed}
                train(run, {**common, **data, **flags, **validated(total)})
                record(way, run, count, seed, steps=total, expected=expected)
    plot_losses(read_json_lines(results), args.output_dir / "losses.png")


if __name__ == "__main__":
    main()
