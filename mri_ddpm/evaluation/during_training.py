"""Quality and copying during a training, so that both curves are seen over it."""

from collections.abc import Callable

import numpy as np

from mri_ddpm.data import Scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.copies import ChannelDetectors, audit_in_all
from mri_ddpm.evaluation.estimates import Estimate
from mri_ddpm.evaluation.features import Extractor, make_extractor
from mri_ddpm.evaluation.lazy import Images, plane
from mri_ddpm.evaluation.quality import detail, kid
from mri_ddpm.evaluation.subject import as_arrays, class_counts, conditions_of, rows_alike
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
        self.scans, channels = scans.train, scans.channels
        training, self.labels = as_arrays(scans.train)
        unseen, _ = as_arrays(scans.validation)
        self.details: dict[str, Callable] = {}
        self.metrics: dict[str, Callable] = {}
        extractors = []
        for index, name in enumerate(channels.contrasts):
            of_channel = plane(training, index)
            extractors.append(
                make_extractor("in_domain", of_channel, self.labels, scans.class_names, device, cache_dir)
            )
            self.add(index, f"_{name}" if len(channels.contrasts) > 1 else "", of_channel, extractors[-1])
        try:
            self.detectors = ChannelDetectors.fit(training, unseen, extractors)
        except InputError as error:
            say(f"copies are not looked for: {error}")
        else:
            self.metrics["flagged_share"] = self.flagged_share

    def add(self, index: int, ending: str, training: Images, extractor: Extractor) -> None:
        """Have one contrast measured, by names with this ending."""
        features, of_training = extractor(training[extractor.reference]), detail(training)
        wavelets = WaveletFeatures.fit(training)
        wavelet_features = wavelets(training)
        self.details[f"detail_ratio{ending}"] = lambda images: detail(plane(images, index)) / of_training
        self.metrics |= {
            f"wavelet_kid{ending}": lambda images: kid(wavelet_features, wavelets(plane(images, index))),
            f"kid{ending}": lambda images: kid(features, extractor(plane(images, index))),
        }

    def __call__(self, pipeline: MRIDDPMPipeline) -> dict:
        """KIDs and the share of images flagged as copies, each with its 95 % interval, and fine detail relative to scans.

        Of several contrasts each has its name at the end, such as ``kid_t1``. What there are too few scans or images for is left
        out. What the model is given is of training scans of the class, chosen at random.
        """
        # Scans without classes are of "no class" to a model that has some
        names = pipeline.class_names
        labels = self.labels if names else np.zeros_like(self.labels)
        counts = class_counts(labels, max(1, len(names)), self.num_images)
        rows = rows_alike(labels, np.repeat(np.arange(len(counts)), counts), self.options.seed)
        images, _ = sample_arrays(pipeline, counts, self.options, conditions_of(self.scans, rows))
        found: dict = {name: measure(images) for name, measure in self.details.items()}
        for name, metric in self.metrics.items():
            try:
                estimate = metric(images)
            except InputError as error:
                self.say(f"{name} is not measured: {error}")
                continue
            found |= {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}
        return found

    def flagged_share(self, images: np.ndarray) -> Estimate:
        """The share taken for copies of training scans, in any channel or in all together."""
        share = audit_in_all(self.detectors, self.detectors.examine(images))["copies"]["share"]
        return Estimate(share["value"], *share["interval"], n=share["n"])


def is_evaluation(row: dict) -> bool:
    """Whether a row of ``metrics.jsonl`` is of such a measurement."""
    return any(name.startswith("detail_ratio") for name in row)
