"""When does a model of few scans begin to copy them, what tells it in time, and what holds it back?

Trains on so many scans of each class for hundreds of epochs, in each way of `WAYS`. The averaged weights of every checkpoint are then
sampled, and the samples are compared with scans that this training has never seen (quality) and with those it has (copies). One JSON
line a checkpoint goes to ``results.jsonl``; what is there already is not made again, and what was cut short is resumed.

    python -m benchmarks.memorising --train_data_dir DIR --output_dir runs/memorising [--ways NAME ...]

Each way says what was expected of it before it was trained.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mri_ddpm.data import load_scans
from mri_ddpm.evaluation.estimates import share
from mri_ddpm.evaluation.memorisation import CopyDetector, audit, worst_pairs_picture
from mri_ddpm.evaluation.nearest import correlating
from mri_ddpm.evaluation.quality import detail_ratio, kid
from mri_ddpm.evaluation.subject import as_arrays
from mri_ddpm.evaluation.wavelets import WaveletFeatures
from mri_ddpm.files import read_json_lines
from mri_ddpm.runs import load_pipeline
from mri_ddpm.sampling import SamplingOptions, sample_arrays
from mri_ddpm.sampling.sheets import sheet

from .trained import averaged, train

WAYS = {  # name -> flags, and what was expected
    "default": (
        {},
        "copies beyond chance from 150 to 300 epochs on; the validation loss is least at 60 to 100, so it warns; "
        "quality is best where copying begins",
    ),
    "flip": (
        {"random_flip": True},
        "wavelet KID 0.06 to 0.08 where it is 0.11 without, and no more heads mirrored than without: the network is told of these",
    ),
    "dropout": ({"dropout": 0.2}, "copies begin later, samples are blurred"),
}
SAMPLER = {"scheduler": "dpmsolver++sde", "num_inference_steps": 20}
SHOWN = 8  # samples in a row of the picture


def write_folder(scans, folder: Path, source: str, each: int) -> np.ndarray:
    """Links to so many training scans of each class and to all validation scans; which rows of the training part they are."""
    training = [f for f in scans.manifest["files"] if f["split"] == "train"]
    validation = [f for f in scans.manifest["files"] if f["split"] == "validation"]
    rng, rows = np.random.default_rng(0), []
    for name in scans.class_names:
        of_class = [row for row, file in enumerate(training) if file["class"] == name]
        rows += sorted(rng.choice(of_class, each, replace=False).tolist())
    for part, files in {"train": [training[row] for row in rows], "val": validation}.items():
        for number, file in enumerate(files):
            original = Path(source, scans.paths[file["path"]]).resolve()
            link = folder / part / file["class"] / f"{number:05d}{original.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(original)
    return np.array(rows)


def losses(run: Path, step: int, last: int) -> dict:
    """Of the last steps before `step` on training scans, and the last on validation scans."""
    rows = [row for row in read_json_lines(run / "metrics.jsonl") if row["step"] <= step]
    trained = [row["loss"] for row in rows if "loss" in row and row["step"] > step - last]
    held_out = [row["validation_loss_ema"] for row in rows if "validation_loss_ema" in row]
    return {"training_loss": float(np.mean(trained)), "validation_loss_ema": held_out[-1]}


class Yardstick:
    """Quality against scans that the training has not seen, and copies of those it has."""

    def __init__(self, scans, rows: np.ndarray, num_images: int):
        training, labels = (np.asarray(part) for part in as_arrays(scans.train))
        self.validation = np.asarray(as_arrays(scans.validation)[0])
        self.others = np.delete(training, rows, axis=0)
        self.wavelets = WaveletFeatures.fit(self.others)
        self.of_others = self.wavelets(self.others)
        both = np.concatenate([self.others, self.others[..., ::-1]])
        self.wavelets_of_both = WaveletFeatures.fit(both)
        self.of_both = self.wavelets_of_both(both)
        self.detector = CopyDetector.fit(training[rows], self.validation)
        self.counts = [num_images // len(scans.class_names)] * len(scans.class_names)

    def of_sides(self, images: np.ndarray) -> dict:
        """What mirroring changes: the distance to scans as they are and mirrored, and how many images are likest to a mirrored one."""
        rows, scans, mirrored = (
            correlating(torch.from_numpy(part.copy()))
            for part in (images, self.others, self.others[..., ::-1])
        )
        nearer = (rows @ mirrored.T).amax(1) > (rows @ scans.T).amax(1)
        return {
            "wavelet_kid_mirrored_too": kid(self.of_both, self.wavelets_of_both(images)).as_dict(),
            "mirrored_share": share(nearer.numpy()).as_dict(),
        }

    def measure(self, images: np.ndarray) -> dict:
        """Of images (N, 1, H, W) in [0, 1]."""
        found = audit(self.detector, images)
        return {
            **self.of_sides(images),
            "wavelet_kid": kid(self.of_others, self.wavelets(images)).as_dict(),
            "detail_ratio": detail_ratio(self.others, images).as_dict(),
            "copies": found["copies"],
            "median_ratio": found["pixels"]["median_ratio"],
            "validation_median_ratio": found["pixels"]["validation_median_ratio"],
        }

    def sample(self, run: Path, checkpoint: Path) -> np.ndarray:
        """From the same noise at every checkpoint."""
        pipeline, options = load_pipeline(str(run), "cpu"), SamplingOptions(**SAMPLER, batch_size=50)
        pipeline.unet = averaged(pipeline.unet, checkpoint)
        options.prepare(pipeline, sum(self.counts), 0)
        return sample_arrays(pipeline, self.counts, options)[0]


def plot(rows: list[dict], path: Path) -> None:
    """Losses, quality and nearness to its own scans over the epochs, a colour a way."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for colour, way in enumerate(dict.fromkeys(row["way"] for row in rows)):
        of_way = [row for row in rows if row["way"] == way]
        epochs = [row["epochs"] for row in of_way]

        def curve(
            panel: int,
            label: str,
            of_row,
            line: str = "-",
            *,
            way=way,
            of_way=of_way,
            epochs=epochs,
            colour=colour,
        ):
            found = [of_row(row) for row in of_way]
            found = [e if isinstance(e, dict) else {"value": e, "interval": [e, e]} for e in found]
            value = np.array([e["value"] for e in found])
            low, high = np.array([e["interval"] for e in found]).T
            style = {"linestyle": line, "color": f"C{colour}", "capsize": 2, "label": f"{way}: {label}"}
            panels[panel].errorbar(epochs, value, yerr=[value - low, high - value], **style)

        curve(0, "unseen scans", lambda row: row["validation_loss_ema"])
        curve(0, "its own scans", lambda row: row["training_loss"], "--")
        curve(1, "to scans it has not seen", lambda row: row["wavelet_kid"])
        curve(1, "to these and their mirror images", lambda row: row["wavelet_kid_mirrored_too"], "--")
        curve(2, "nearest over mean of 50", lambda row: row["median_ratio"])
        curve(3, "taken for copies", lambda row: row["copies"]["share"])
    unseen = {"color": "gray", "linestyle": ":", "label": "unseen scans"}
    panels[2].axhline(rows[-1]["validation_median_ratio"]["value"], **unseen)
    panels[3].axhline(rows[-1]["copies"]["expected"], **unseen)
    titles = (
        "loss",
        "wavelet KID",
        "distance to the nearest of its own scans, median",
        "share of 200 images",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="epochs")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/memorising"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--each", type=int, default=25, help="training scans of each class")
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--max_train_steps", type=int, default=2400)
    parser.add_argument("--checkpointing_steps", type=int, default=300)
    parser.add_argument("--num_images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.train_data_dir, args.output_dir = str(Path(args.train_data_dir).resolve()), args.output_dir.resolve()
    scans = load_scans(train_data_dir=args.train_data_dir, resolution=args.resolution)
    args.output_dir /= f"{args.each}-each"  # what is there is of so many scans
    folder, results = args.output_dir / "scans", args.output_dir / "results.jsonl"
    chosen = write_folder(scans, folder, args.train_data_dir, args.each)
    yardstick = Yardstick(scans, chosen, args.num_images)
    common = {"train_data_dir": folder, "keep_repeats": True, "seed": args.seed, "preset": args.preset}
    common |= {"resolution": args.resolution, "max_train_steps": args.max_train_steps}
    common |= {
        "validation_steps": args.checkpointing_steps // 3,
        "checkpointing_steps": args.checkpointing_steps,
    }
    common |= {"checkpoints_total_limit": args.max_train_steps}
    for way in args.ways:
        flags, expected = WAYS[way]
        run = args.output_dir / f"{way}-seed{args.seed}"
        train(run, {**common, **flags})
        done = {(row["way"], row["seed"], row["step"]) for row in read_json_lines(results)}
        shown = []
        for checkpoint in sorted((run / "checkpoints").iterdir()):
            step = int(checkpoint.name.removeprefix("step-"))
            file = args.output_dir / f"{run.name}-{step:06d}.npz"
            if not file.exists():
                np.savez_compressed(file, images=yardstick.sample(run, checkpoint))
            images = np.load(file)["images"]
            shown.append(images[:: len(images) // SHOWN][:SHOWN])
            if (way, args.seed, step) in done:
                continue
            row = {"way": way, "seed": args.seed, "step": step, "scans": len(chosen), "n": len(images)}
            row["epochs"] = (
                json.loads((run / "config.json").read_text())["train_batch_size"] * step / len(chosen)
            )
            row |= {
                "flags": flags,
                "expected": expected,
                **losses(run, step, 100),
                **yardstick.measure(images),
            }
            with results.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(json.dumps(row)[:400], flush=True)
        sheet(np.stack(shown, axis=1), [""] * SHOWN).save(args.output_dir / f"{run.name}.png")
        found = yardstick.detector.examine(images)
        worst_pairs_picture(yardstick.detector, found, images).save(args.output_dir / f"{run.name}-pairs.png")
    plot(list(read_json_lines(results)), args.output_dir / "memorising.png")


if __name__ == "__main__":
    main()
