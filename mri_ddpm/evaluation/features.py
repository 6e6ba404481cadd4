"""From images to the features that distances are measured in. Which extractor it was is named in every report."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.classifier import STEPS, ScanClassifier, train_classifier
from mri_ddpm.evaluation.lazy import Images, blocks, turned

EXTRACTORS = ("in_domain", "dinov2", "inception")
CLASSIFIER_VERSION = 1  # raise it when the classifier or its training changes
DINOV2 = "facebook/dinov2-small"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Extractor:
    """Features of images, in batches.

    Args:
        name: for the report.
        network: ``(B, 1, H, W)`` in [0, 1] -> ``(B, D)``, without gradients.
        device: where the batches go.
        reference: rows ``(M,)`` of the training scans that distances are to: those that the network was not trained on.
    """

    def __init__(
        self,
        name: str,
        network: Callable[[torch.Tensor], torch.Tensor],
        device: str,
        reference: np.ndarray | slice = slice(None),
    ):
        self.name, self.network, self.device, self.reference = name, network, device, reference

    @torch.no_grad()
    def __call__(self, images: Images) -> np.ndarray:
        """``(N, 1, H, W)`` float32 in [0, 1] -> ``(N, D)`` float32."""
        batches = (torch.from_numpy(block).to(self.device) for block in blocks(images))
        return torch.cat([self.network(batch).float().cpu() for batch in batches]).numpy()


def make_extractor(
    name: str,
    images: Images,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    device: str = "cpu",
    cache_dir: str | None = None,
) -> Extractor:
    """An extractor by name, one of ``EXTRACTORS``.

    Args:
        name: ``"in_domain"`` is a small classifier trained on every other image of each class, once: it is kept by their hash.
            The images between are its ``reference``, because in features of what it has learned by heart copies come
            nearer than unseen scans do. Without classes it learns how far an image was turned (Gidaris et al. 2018). ``"dinov2"`` and ``"inception"`` need
            weights from the network.
        images: the training scans, ``(N, 1, H, W)`` float32 in [0, 1].
        labels: their classes, ``(N,)``.
        class_names: names of the classes; empty for scans without.
        device: where to run.
        cache_dir: where classifiers are kept, by default in the cache of ``datasets``.

    Raises:
        InputError: for an unknown name, or weights that cannot be had.
    """
    if name == "in_domain":
        learned = every_other(labels)
        model = in_domain_classifier(images[learned], labels[learned], class_names, device, cache_dir)
        task = "classes" if class_names else "turns by 90 degrees"
        title = f"in-domain classifier ({task}, {learned.sum()} of {len(images)} training scans)"
        return Extractor(title, model.features, device, reference=~learned)
    if name == "dinov2":
        return Extractor(DINOV2, dinov2(device), device)
    if name == "inception":
        return Extractor("Inception-v3 (ImageNet)", inception(device), device)
    raise InputError(f"--extractor {name} is unknown; take one of {', '.join(EXTRACTORS)}.")


def every_other(labels: np.ndarray) -> np.ndarray:
    """Half of ``(M,)`` images as a mask, the first, third, ... in order of classes, so that all classes are in both halves."""
    chosen = np.empty(len(labels), dtype=bool)
    chosen[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2 == 0
    return chosen


def in_domain_classifier(
    images: Images, labels: np.ndarray, class_names: tuple[str, ...], device: str, cache_dir: str | None
) -> ScanClassifier:
    """The classifier of these scans: out of the cache, or trained now and kept."""
    folder = (
        Path(cache_dir).expanduser() if cache_dir else Path(datasets.config.HF_DATASETS_CACHE, "mri_ddpm")
    )
    content = hashlib.sha256(f"{CLASSIFIER_VERSION} {STEPS} {len(class_names)} {images.shape}".encode())
    for block in blocks(images):
        content.update(np.ascontiguousarray(block))
    content.update(np.ascontiguousarray(labels))
    file = folder / f"classifier-{content.hexdigest()[:32]}.safetensors"
    num_classes = len(class_names) or 4
    if not file.is_file():
        if not class_names:
            images, labels = turned(images), np.repeat(np.arange(4), len(labels))
        model = train_classifier(
            images,
            labels,
            num_classes,
            seed=0,
            device=device,
            title="feature extractor",
        )
        folder.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{uuid4().hex}.tmp")  # two processes at once do no harm
        save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, draft)
        draft.replace(file)
    model = ScanClassifier(num_classes)
    model.load_state_dict(load_file(file))
    return model.eval().to(device, memory_format=torch.channels_last)


def to_rgb(images: torch.Tensor, size: int) -> torch.Tensor:
    """Grey ``(B, 1, H, W)`` -> ``(B, 3, size, size)``, still in [0, 1]."""
    resized = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1).expand(-1, 3, -1, -1)


def dinov2(device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """DINOv2's class token (Oquab et al. 2023), 384 numbers, from 224 x 224 pixels."""
    from transformers import AutoModel  # imported late: it is slow

    try:
        model = AutoModel.from_pretrained(DINOV2).eval().to(device)
    except Exception as error:  # of several HTTP libraries
        raise missing_weights("dinov2") from error
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return lambda images: model(pixel_values=(to_rgb(images, 224) - mean) / std).last_hidden_state[:, 0]


def inception(device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Inception-v3's pool features, 2048 numbers, as torchmetrics and most papers take them."""
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        model = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).eval().to(device)
    except Exception as error:  # of a missing package, or of the network
        raise missing_weights("inception") from error
    return lambda images: model((to_rgb(images, 299) * 255).round().to(torch.uint8))


def missing_weights(name: str) -> InputError:
    """The one sentence for weights that are neither on this machine nor to be had."""
    extra = ", and torch-fidelity ('pip install torch-fidelity')" if name == "inception" else ""
    return InputError(
        f"--extractor {name} needs its weights from the network{extra}; connect, or take --extractor in_domain."
    )
