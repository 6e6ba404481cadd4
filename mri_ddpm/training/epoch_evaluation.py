"""Quality and copying at chosen epochs, so that both curves are seen over the training."""

from typing import TYPE_CHECKING

import numpy as np
from diffusers import DDPMScheduler

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.estimates import Estimate
from mri_ddpm.evaluation.features import make_extractor
from mri_ddpm.evaluation.memorisation import VERDICT_RATE, CopyDetector, audit
from mri_ddpm.evaluation.quality import detail, kid
from mri_ddpm.evaluation.subject import as_arrays, class_counts, draw
from mri_ddpm.evaluation.wavelets import WaveletFeatures
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.training.records import plot_evaluation

if TYPE_CHECKING:
    from mri_ddpm.training.loop import TrainingRun


class EpochEvaluation:
    """Measures ``config.evaluate_images`` samples, from the same noise every time, against the training scans.

    The feature extractor is trained, or found in the cache, once at the start.
    """

    def __init__(self, run: "TrainingRun"):
        self.run = run
        training, self.labels = as_arrays(run.scans.train)
        held_out, _ = as_arrays(run.scans.validation)
        device, cache_dir = str(run.accelerator.device), run.config.cache_dir
        self.extractor = make_extractor(
            "in_domain", training, self.labels, run.scans.class_names, device, cache_dir
        )
        self.features, self.detail = self.extractor(training[self.extractor.reference]), detail(training)
        self.wavelets = WaveletFeatures.fit(training)
        self.wavelet_features = self.wavelets(training)
        self.metrics = {
            "wavelet_kid": lambda images: kid(self.wavelet_features, self.wavelets(images)),
            "kid": lambda images: kid(self.features, self.extractor(images)),
        }
        try:
            self.detector = CopyDetector.fit(training, held_out, self.extractor)
        except InputError as error:
            run.bar.write(f"copies are not looked for: {error}")
        else:
            self.metrics["flagged_share"] = self.flagged_share

    def record(self, epoch: int) -> None:
        """Measure the network as it is, and bring the numbers to ``metrics.jsonl``, the trackers and ``evaluation.png``."""
        run = self.run
        row = {"step": run.progress.step, "epoch": epoch, **self.measure(self.draw())}
        run.metrics.append([row])
        plot_evaluation(run.metrics.rows, run.run_dir / "evaluation.png", expected_share=VERDICT_RATE)
        run.accelerator.log({name: row[name] for name in self.metrics if name in row}, step=row["step"])
        shown = [f"{name} {row[name]:.4f}" for name in self.metrics if name in row]
        run.bar.write(f"epoch {epoch}: {', '.join(shown) or 'too few scans to measure anything but detail'}")

    def draw(self) -> np.ndarray:
        """Samples of the network, ``(evaluate_images, 1, H, W)`` in [0, 1], in the classes' training proportions."""
        unet, config = self.run.raw_unet, self.run.config
        was_training = unet.training
        scheduler = DDPMScheduler.from_config(self.run.noise_scheduler.config)
        pipeline = MRIDDPMPipeline(unet.eval(), scheduler)
        names = pipeline.class_names
        labels = self.labels if names else np.zeros_like(self.labels)
        images, _ = draw(
            pipeline,
            class_counts(labels, max(1, len(names)), config.evaluate_images),
            num_inference_steps=config.num_inference_steps,
            guidance_scale=1.0,
            batch_size=config.train_batch_size,
            seed=config.seed,
        )
        unet.train(was_training)
        return images

    def measure(self, images: np.ndarray) -> dict:
        """KIDs and the share of images flagged as copies, each with its 95 % interval, and fine detail relative to scans.

        What there are too few scans or images for is left out.
        """
        found: dict = {"detail_ratio": detail(images) / self.detail}
        for name, metric in self.metrics.items():
            try:
                estimate = metric(images)
            except InputError as error:
                self.run.bar.write(f"{name} is not measured: {error}")
                continue
            found |= {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}
        return found

    def flagged_share(self, images: np.ndarray) -> Estimate:
        """The share taken for copies of training scans."""
        share = audit(self.detector, images)["copies"]["share"]
        return Estimate(share["value"], *share["interval"], n=share["n"])
