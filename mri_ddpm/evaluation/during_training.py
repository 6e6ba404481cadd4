"""Quality and copying during a training, so that both curves are seen over it."""

from collections.abc import Callable

import numpy as np

from mri_ddpm.data import Scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.estimates import Estimate
from mri_ddpm.evaluation.features import make_extractor
from mri_ddpm.evaluation.memorisation import CopyDetector, audit
from mri_ddpm.evaluation.quality import detail, kid
from mri_ddpm.evaluation.subject import as_arrays, class_counts
from mri_ddpm.evaluation.wavelets import WaveletFeatures
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.sampling import SamplingOptions, sample_arrays


class TrainingEvaluator:
    """Measures samples of a pipeline, from the same noise every time, against the training scans.

    The feature extractor is trained, or found in the cache, once at the start.

    Args:
        scans: of the training.
        num_images: samples each time, in the classes' training proportions.
        num_inference_steps: steps of the reverse chain; all when ``None``.
        batch_size: images at once.
        seed: of the first image.
        device: where the features are computed.
        cache_dir: where trained extractors are kept.
        say: how a line reaches the user.
    """

    def __init__(
        self,
        scans: Scans,
        *,
        num_images: int,
        num_inference_steps: int | None,
        batch_size: int,
        seed: int,
        device: str,
        cache_dir: str | None,
        say: Callable[[str], None],
    ):
        self.num_images, self.say = num_images, say
        self.options = SamplingOptions(
            num_inference_steps=num_inference_steps, batch_size=batch_size, seed=seed
        )
        training, self.labels = as_arrays(scans.train)
        unseen, _ = as_arrays(scans.validation)
        self.extractor = make_extractor(
            "in_domain", training, self.labels, scans.class_names, device, cache_dir
        )
        self.features, self.detail = self.extractor(training[self.extractor.reference]), detail(training)
        self.wavelets = WaveletFeatures.fit(training)
        self.wavelet_features = self.wavelets(training)
        self.metrics = {
            "wavelet_kid": lambda images: kid(self.wavelet_features, self.wavelets(images)),
            "kid": lambda images: kid(self.features, self.extractor(images)),
        }
        try:
            self.detector = CopyDetector.fit(training, unseen, self.extractor)
        except InputError as error:
            say(f"copies are not looked for: {error}")
        else:
            self.metrics["flagged_share"] = self.flagged_share

    def __call__(self, pipeline: MRIDDPMPipeline) -> dict:
        """KIDs and the share of images flagged as copies, each with its 95 % interval, and fine detail relative to scans.

        What there are too few scans or images for is left out.
        """
        # Scans without classes are of "no class" to a model that has some
        names = pipeline.class_names
        labels = self.labels if names else np.zeros_like(self.labels)
        counts = class_counts(labels, max(1, len(names)), self.num_images)
        images, _ = sample_arrays(pipeline, counts, self.options)
        found: dict = {"detail_ratio": detail(images) / self.detail}
        for name, metric in self.metrics.items():
            try:
                estimate = metric(images)
            except InputError as error:
                self.say(f"{name} is not measured: {error}")
                continue
            found |= {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}
        return found

    def flagged_share(self, images: np.ndarray) -> Estimate:
        """The share taken for copies of training scans."""
        share = audit(self.detector, images)["copies"]["share"]
        return Estimate(share["value"], *share["interval"], n=share["n"])
