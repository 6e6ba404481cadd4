"""The head phantom: a seeded drawing of an MRI-like head, for the quickstart, the tests and the docs.

A phantom is a drawing. It is not anatomy, it holds no patient, and a model trained on it has learned nothing
about disease: it stands in for scans only where there are none. The idea of a head composed of ellipses is
Shepp & Logan's (The Fourier reconstruction of a head section, IEEE Trans. Nucl. Sci. 1974); folds, contrasts,
coil bias and lesions are added so that an image model has something to learn.

A head is drawn analytically in its own coordinates (x to the right, y down, the head about as large as
[-1, 1] x [-1, 1]), so one seed is one head at every resolution. Each part takes its randomness from a stream
of its own, so one seed is also the same head for every class, but for the lesion. (H, W) are the height and
width of the supersampled grid while a head is being drawn.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from mri_ddpm.scan_options import MIN_RESOLUTION

from .phantom_anatomy import VIEWS, Ellipse, View

CLASS_NAMES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
PLANES = ("axial", "coronal", "sagittal")

_Rng = np.random.Generator
_STREAMS = (
    "plane",
    "pose",
    "contrast",
    "anatomy",
    "lesion",
    "bias",
    "noise",
)  # append only: order is the seed

# Intensities of the tissues per contrast, in [0, 1]. "enhanced" is T1 after a contrast agent, the commonest.
_TISSUES = ("air", "bone", "marrow", "fat", "muscle", "csf", "grey", "white")
_TISSUES += ("rim", "core", "oedema", "meningioma", "pituitary", "vessel")
_TONES = {
    "enhanced": (0.0, 0.05, 0.22, 0.66, 0.25, 0.09, 0.27, 0.35, 0.72, 0.12, 0.19, 0.68, 0.66, 0.70),
    "t1": (0.0, 0.04, 0.35, 0.86, 0.33, 0.11, 0.36, 0.52, 0.66, 0.16, 0.26, 0.72, 0.68, 0.20),
    "t2": (0.0, 0.04, 0.28, 0.55, 0.18, 0.92, 0.47, 0.31, 0.40, 0.86, 0.72, 0.74, 0.70, 0.05),
    "flair": (0.0, 0.05, 0.24, 0.48, 0.26, 0.07, 0.46, 0.35, 0.74, 0.22, 0.66, 0.74, 0.72, 0.15),
}
CONTRASTS = ("t1", "t1ce", "t2", "flair")  # of one head, each by its name
_TONES_OF = {"t1ce": "enhanced"}
LABELS = ("brain", "ventricle", "lesion")  # oedema is a part of the lesion
MASK_LABELS = {"seg": LABELS}
_BRAIN, _VENTRICLE, _LESION = range(1, len(LABELS) + 1)
_CONTRAST_SHARES = {"enhanced": 0.55, "t1": 0.2, "t2": 0.15, "flair": 0.1}


@dataclass
class _Head:
    """A head being drawn. Arrays are (H, W); a distance is negative inside, in head coordinates."""

    view: View
    tones: dict[str, float]
    x: np.ndarray
    y: np.ndarray
    sample: float  # a sample's width
    image: np.ndarray
    cavity: np.ndarray  # distance to the inner skull
    waves: np.ndarray  # smooth texture, mean 0 and variance 1
    labels: np.ndarray  # uint8, numbers of LABELS from 1, 0 outside the brain
    label: int = 0  # of what is painted

    def paint(self, distance: np.ndarray, tone: float | np.ndarray, edge: float = 0.0) -> None:
        """Blend a tone over where the distance is negative, across an edge of at least one sample."""
        mask = np.clip(0.5 - distance / max(edge, self.sample), 0.0, 1.0)
        self.image += mask * (tone - self.image)
        if self.label:
            self.labels[distance < 0] = self.label


def draw_phantom(class_name: str, seed: int, resolution: int, plane: str | None = None) -> np.ndarray:
    """Draw one head phantom: a drawing for tests and demonstrations, not a substitute for a scan.

    The result is float32 of shape (resolution, resolution) in [0, 1] and depends on the arguments alone. The
    same seed gives the same head at every resolution (only the pixel noise differs) and for every class,
    apart from the lesion; the exception is an axial `pituitary_tumor`, always cut at the level of the sella.

    `class_name` is one of `CLASS_NAMES`; `plane` one of `PLANES`, or None to have the seed choose. Raises
    ValueError for any other name, a negative seed or a resolution under 16.
    """
    _check(class_name, seed, resolution, plane)
    return _draw(class_name, seed, resolution, plane)[0]


def _draw(
    class_name: str, seed: int, resolution: int, plane: str | None = None, contrast: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The image, and the number of a label in each pixel, uint8; the seed chooses the contrast where none is named."""
    streams = _streams(seed)
    view = _choose_view(streams["plane"], plane, class_name)
    samples = int(np.clip(96 // resolution, 2, 4))  # per pixel and axis
    head = _draw_head(view, streams, resolution * samples, contrast)
    head.label = _LESION
    _LESION_PAINTERS[class_name](head, streams["lesion"])
    scan = _average_down(head.image, samples) * _coil_bias(streams["bias"], resolution)  # (res, res)
    noise = streams["noise"]
    if contrast:  # each contrast of a head is measured anew
        noise = np.random.default_rng([seed, _STREAMS.index("noise"), 1 + CONTRASTS.index(contrast)])
    noise_level = noise.uniform(0.004, 0.018)
    image = np.clip(add_rician_noise(scan, noise_level, noise), 0.0, 1.0).astype(np.float32)
    shares = [_average_down(head.labels == number, samples) for number in range(len(LABELS) + 1)]
    return image, np.argmax(shares, axis=0).astype(np.uint8)


def draw_phantoms(num_images: int, resolution: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a balanced set of phantoms in mixed planes and contrasts.

    Returns the images, float32 (num_images, resolution, resolution) in [0, 1], and their labels, int64
    (num_images,) into `CLASS_NAMES`, which repeat 0, 1, 2, 3. Image i depends on `seed`, i and the
    resolution, not on `num_images`. Raises ValueError as `draw_phantom` does and for a negative `num_images`.
    """
    if num_images < 0:
        raise ValueError(f"num_images is {num_images}: ask for 0 phantoms or more.")
    _check(CLASS_NAMES[0], seed, resolution, None)
    planes, labels = draw_phantom_planes(num_images, resolution, seed, ("",))
    return planes[""], labels


def draw_phantom_planes(
    num_images: int, resolution: int, seed: int, names: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Several planes of each head of `draw_phantoms`, by name, and the labels of the classes.

    `names` are of `CONTRASTS`, "seg", whose pixels are the numbers of `LABELS` from 1, uint8, and "", the image of
    `draw_phantoms` itself, in a contrast that the seed chooses. All planes of a head show one geometry.
    """
    _check(CLASS_NAMES[0], seed, resolution, None)
    planes, labels = _drawn(num_images, resolution, seed, tuple(names))
    return {name: plane.copy() for name, plane in planes.items()}, labels.copy()


# A training and its evaluation ask for the same, and drawing takes longer than small networks train
@functools.lru_cache(maxsize=1)
def _drawn(
    num_images: int, resolution: int, seed: int, names: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    labels = np.arange(num_images, dtype=np.int64) % len(CLASS_NAMES)
    shape = (num_images, resolution, resolution)
    planes = {name: np.zeros(shape, np.uint8 if name in MASK_LABELS else np.float32) for name in names}
    images = [name for name in names if name not in MASK_LABELS]
    for index, label in enumerate(labels):
        own_seed = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
        for name in images or [""]:
            image, mask = _draw(CLASS_NAMES[label], own_seed, resolution, contrast=name or None)
            for plane in (name, *MASK_LABELS):
                if plane in planes:
                    planes[plane][index] = mask if plane in MASK_LABELS else image
    return planes, labels


def add_rician_noise(signal: np.ndarray, sigma: float, generator: _Rng) -> np.ndarray:
    """Return the magnitude of a signal with Gaussian noise of deviation sigma in both receiver channels.

    This is how noise enters a magnitude MR image: |signal + n_1 + i n_2|, Gudbjartsson & Patz, The Rician
    distribution of noisy MRI data, Magn. Reson. Med. 1995. Where the signal is 0 the result is Rayleigh
    distributed, with mean sigma * sqrt(pi / 2). Any shape; not clipped.
    """
    real, imaginary = sigma * generator.standard_normal((2, *np.shape(signal)))
    return np.hypot(signal + real, imaginary)


def _check(class_name: str, seed: int, resolution: int, plane: str | None) -> None:
    if class_name not in CLASS_NAMES:
        raise ValueError(f"The phantom has no class {class_name!r}: choose one of {', '.join(CLASS_NAMES)}.")
    if plane is not None and plane not in PLANES:
        raise ValueError(f"The phantom has no plane {plane!r}: choose one of {', '.join(PLANES)}, or None.")
    if resolution < MIN_RESOLUTION:
        raise ValueError(
            f"resolution is {resolution}: a phantom needs {MIN_RESOLUTION} pixels a side or more."
        )
    if seed < 0:
        raise ValueError(f"seed is {seed}: choose 0 or more.")


def _streams(seed: int) -> dict[str, _Rng]:
    return {name: np.random.default_rng([seed, index]) for index, name in enumerate(_STREAMS)}


def _choose_view(rng: _Rng, plane: str | None, class_name: str) -> View:
    drawn = PLANES[rng.integers(len(PLANES))]
    level = rng.choice(["high", "mid", "low"], p=[0.15, 0.5, 0.35])
    plane = plane or drawn
    if plane != "axial":
        return VIEWS[plane]
    return VIEWS["axial_low" if class_name == "pituitary_tumor" else f"axial_{level}"]


def _draw_head(view: View, streams: dict[str, _Rng], size: int, contrast: str | None = None) -> _Head:
    """Draw everything but the lesion on a grid of (size, size) samples."""
    anatomy = streams["anatomy"]
    x, y = _head_coordinates(streams["pose"], size, view.egg)
    head = _Head(
        view=view,
        tones=_choose_tones(streams["contrast"], contrast),
        x=x,
        y=y,
        sample=2.0 / size,
        image=np.zeros_like(x),
        cavity=_union(view.cavity, x, y),
        waves=_waves(anatomy, x, y, 7, 5.0, 15.0),
        labels=np.zeros(x.shape, np.uint8),
    )
    _paint_face(head, anatomy)
    head.label = _BRAIN
    _paint_brain(head, anatomy)
    _paint_inside(head, anatomy)
    return head


def _head_coordinates(rng: _Rng, size: int, egg: float) -> tuple[np.ndarray, np.ndarray]:
    """Return each sample's place in the head: the image grid shifted, turned, scaled and gently warped."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    column, row = line[None, :] - rng.uniform(-0.05, 0.05), line[:, None] - rng.uniform(-0.05, 0.05)
    angle, scale, stretch = (
        math.radians(rng.normal(0.0, 3.5)),
        rng.uniform(0.88, 1.04),
        rng.uniform(0.94, 1.06),
    )
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    x = (column * cosine + row * sine) * stretch
    y = (row * cosine - column * sine) / stretch
    warped_x = x + 0.014 * _waves(rng, x, y, 2, 2.0, 4.5)
    warped_y = y + 0.014 * _waves(rng, x, y, 2, 2.0, 4.5)
    return warped_x * (1 - egg * warped_y), warped_y


def _choose_tones(rng: _Rng, contrast: str | None = None) -> dict[str, float]:
    """The intensity of each tissue. Contrasts of one head differ in nothing but their table."""
    drawn = rng.choice(list(_CONTRAST_SHARES), p=list(_CONTRAST_SHARES.values()))
    contrast = _TONES_OF.get(contrast, contrast) or drawn
    brightness = rng.uniform(0.8, 1.15)
    tones = {
        tissue: min(tone * brightness * rng.uniform(0.9, 1.1), 1.0)
        for tissue, tone in zip(_TISSUES, _TONES[contrast], strict=True)
    }
    return tones | {"ventricle": tones["csf"], "eye": tones["csf"], "callosum": 1.12 * tones["white"]}


def _waves(rng: _Rng, x: np.ndarray, y: np.ndarray, count: int, low: float, high: float) -> np.ndarray:
    """Return a random smooth texture of unit variance: plane waves of `low` to `high` radians per unit."""
    total = np.zeros_like(x)
    for _ in range(count):
        direction, wave_number, phase = (
            rng.uniform(0, math.tau),
            rng.uniform(low, high),
            rng.uniform(0, math.tau),
        )
        total += np.cos(wave_number * (math.cos(direction) * x + math.sin(direction) * y) + phase)
    return total * math.sqrt(2 / count)


def _ellipse_distance(shape: Ellipse, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to an ellipse, to first order: r (r - 1) / |gradient of r^2 / 2|."""
    cosine, sine = math.cos(math.radians(shape.tilt)), math.sin(math.radians(shape.tilt))
    dx, dy = (np.abs(x) if shape.mirrored else x) - shape.x, y - shape.y
    u = (dx * cosine + dy * sine) / shape.half_width
    v = (dy * cosine - dx * sine) / shape.half_height
    radius = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / shape.half_width) ** 2 + (v / shape.half_height) ** 2)
    return radius * (radius - 1) / (slope + 1e-6)


def _union(shapes: tuple[Ellipse, ...], x: np.ndarray, y: np.ndarray, blend: float = 0.06) -> np.ndarray:
    """Return the distance to shapes run together, their joints rounded over `blend`."""
    total = _ellipse_distance(shapes[0], x, y)
    for shape in shapes[1:]:
        total = _smooth_minimum(total, _ellipse_distance(shape, x, y), blend)
    return total


def _smooth_minimum(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    overlap = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap * (0.25 / blend)


def _vary(shape: Ellipse, rng: _Rng, growth: float = 1.0) -> Ellipse:
    """Return the ellipse a little moved and resized; what lies on the midline stays there."""
    return shape._replace(
        x=shape.x + rng.normal(0.0, 0.006) * (shape.x != 0),
        y=shape.y + rng.normal(0.0, 0.006),
        half_width=shape.half_width * growth * rng.uniform(0.9, 1.1),
        half_height=shape.half_height * growth * rng.uniform(0.9, 1.1),
    )


def _paint_face(head: _Head, rng: _Rng) -> None:
    """Paint skin and fat, the face below them, and the dark skull around the cavity."""
    tones, scalp, skull = head.tones, rng.uniform(0.035, 0.065), rng.uniform(0.04, 0.065)
    skin = _union(head.view.outline, head.x, head.y)
    if head.view.profile is not None:
        heights, lefts, rights = head.view.profile
        left, right = np.interp(head.y, heights, lefts), np.interp(head.y, heights, rights)
        face = np.maximum(np.maximum(left - head.x, head.x - right), heights[0] - head.y)
        skin = _smooth_minimum(skin, face.astype(np.float32), 0.08)
    head.paint(skin, tones["fat"])
    strands = np.clip(0.95 * np.sin(3 * head.waves + 9 * head.y) - 0.1, 0.1, 0.8)  # fat between the muscles
    flesh = tones["muscle"] + (tones["fat"] - tones["muscle"]) * strands
    head.paint(skin + scalp * (1 + 0.2 * head.waves), flesh)
    for shape in head.view.outside:
        distance = _ellipse_distance(_vary(shape, rng), head.x, head.y)
        head.paint(np.maximum(distance, skin + 0.02), tones[shape.tissue])
    head.paint(head.cavity - skull, tones["bone"])
    head.paint(np.abs(head.cavity - 0.5 * skull) - 0.2 * skull, tones["marrow"])  # between the skull's tables


def _paint_brain(head: _Head, rng: _Rng) -> None:
    """Paint fluid, the folded cortex, white matter and the structures of the view, in that order."""
    tones = head.tones
    head.paint(head.cavity, tones["csf"])
    depth = -head.cavity - rng.uniform(0.012, 0.03)  # below the brain's surface
    for top, bottom in head.view.fissures:
        beyond = np.maximum(np.abs(head.y - (top + bottom) / 2) - (bottom - top) / 2, 0)
        depth = np.minimum(depth, np.hypot(head.x, beyond) - 0.008)
    folds = _folds(head, rng)  # 0 in the depth of a sulcus
    reach = rng.uniform(0.14, 0.24)
    taper = np.clip(1 - depth / reach, 0, 1)
    head.paint(-depth, tones["grey"] * (1 + 0.04 * head.waves))
    cortex = rng.uniform(0.035, 0.05)
    white = np.maximum(cortex - depth, (0.85 * taper - 0.05 - folds) * 0.09)
    head.paint(white, tones["white"] * (1 + 0.03 * head.waves), edge=0.02)
    sulcus = np.maximum(-depth, (folds - rng.uniform(0.2, 0.34) * taper) * 0.09)
    head.paint(sulcus, tones["csf"], edge=0.015)


def _folds(head: _Head, rng: _Rng) -> np.ndarray:
    """Return |sin| of an angle about the hemisphere's centre, bent by the texture; sulci lie at its zeros."""
    centre_x, centre_y = head.view.fold_centre
    across = (np.abs(head.x) if centre_x > 0 else head.x) - centre_x
    angle = np.arctan2(head.y - centre_y, across)
    bend = rng.uniform(1.3, 2.0)
    return np.abs(np.sin(head.view.gyri / 2 * angle + bend * head.waves + rng.uniform(0, np.pi)))


def _paint_inside(head: _Head, rng: _Rng) -> None:
    """Paint the view's structures within the brain; ventricles differ much from head to head."""
    tones, ventricle_size = head.tones, rng.uniform(0.75, 1.45)
    for shape in head.view.inside:
        varied = _vary(shape, rng, ventricle_size if shape.tissue == "ventricle" else 1.0)
        distance = _ellipse_distance(varied, head.x, head.y)
        head.label = _VENTRICLE if shape.tissue == "ventricle" else _BRAIN
        if shape.tissue == "cerebellum":
            folia = 0.5 + 0.5 * np.sin(95 * distance + 2 * head.waves)
            head.paint(distance, tones["grey"] + (tones["white"] - tones["grey"]) * folia)
            head.paint(np.abs(distance + 0.01) - 0.006, tones["csf"])
        else:
            head.paint(distance, tones[shape.tissue], edge=0.035 if shape.tissue == "grey" else 0.015)


def _blob_distance(head: _Head, x: float, y: float, radius: float, roughness: float, rng: _Rng) -> np.ndarray:
    """Return the distance to a disc about (x, y) whose radius varies with the angle by about `roughness`."""
    dx, dy = head.x - x, head.y - y
    angle = np.arctan2(dy, dx)
    outline = np.ones_like(angle)
    for lobes in (2, 3, 5):
        height = roughness * rng.uniform(0.3, 1.0) / math.sqrt(lobes)
        outline += height * np.cos(lobes * angle + rng.uniform(0, math.tau))
    return np.hypot(dx, dy) - radius * outline


def _paint_glioma(head: _Head, rng: _Rng) -> None:
    """Paint oedema, an irregular bright rim and a dark core, all within the brain."""
    zone = head.view.glioma[rng.integers(len(head.view.glioma))]
    side = -1 if zone.mirrored and rng.uniform() < 0.5 else 1
    x = side * (zone.x + zone.half_width * rng.uniform(-1, 1))
    y = zone.y + zone.half_height * rng.uniform(-1, 1)
    radius = rng.uniform(0.11, 0.2)
    mass = _blob_distance(head, x, y, radius, 0.22, rng)
    spread = _blob_distance(head, x, y, radius * rng.uniform(1.35, 1.8), 0.3, rng)
    core = mass + radius * rng.uniform(0.25, 0.42) * (1 + 0.35 * head.waves)
    brain = head.cavity + 0.04
    head.paint(np.maximum(spread, brain), head.tones["oedema"], edge=0.05)
    head.paint(np.maximum(mass, brain), head.tones["rim"])
    head.paint(np.maximum(core, brain), head.tones["core"], edge=0.03)


def _paint_meningioma(head: _Head, rng: _Rng) -> None:
    """Paint a bright even mass with a broad base on the dura, and the dura's thickened tail beside it."""
    radius = rng.uniform(0.12, 0.22)
    if head.view.fissures and rng.uniform() < 0.2:  # on the falx, the dura between the hemispheres
        top, bottom = head.view.fissures[0]
        x = rng.choice([-0.8, 0.8]).item() * radius
        y = rng.uniform(max(top, -0.55), min(bottom, 0.4))
    else:
        angle = math.radians(rng.uniform(*head.view.meningioma_angles))
        distance = _reach(head.view, angle) - radius * rng.uniform(0.25, 0.6)
        x, y = distance * math.cos(angle), distance * math.sin(angle)
    mass = _blob_distance(head, x, y, radius, 0.07, rng)
    tail = np.maximum(mass - 0.5 * radius, np.abs(head.cavity + 0.012) - 0.01)
    head.paint(np.maximum(mass, head.cavity), head.tones["meningioma"] * (1 + 0.02 * head.waves))
    head.paint(tail, head.tones["meningioma"])


def _reach(view: View, angle: float) -> float:
    """Return how far from the origin the cavity's wall lies in a direction."""
    steps = np.linspace(0, 1.2, 241)
    inside = _union(view.cavity, steps * math.cos(angle), steps * math.sin(angle)) < 0
    return float(steps[inside].max(initial=0.0))


def _paint_pituitary(head: _Head, rng: _Rng) -> None:
    """Paint a bright round mass in the sella, often with a second ball on top, like a snowman."""
    radius = rng.uniform(0.07, 0.12)
    x, y = head.view.sella[0] + rng.normal(0, 0.008), head.view.sella[1] + rng.normal(0, 0.008)
    mass = _blob_distance(head, x, y, radius, 0.08, rng)
    if rng.uniform() < 0.5:
        upper_y = y - radius * rng.uniform(1.0, 1.3)
        upper = _blob_distance(head, x, upper_y, radius * rng.uniform(0.6, 0.9), 0.08, rng)
        mass = _smooth_minimum(mass, upper, 0.03)
    head.paint(mass, head.tones["pituitary"] * (1 + 0.02 * head.waves))


_LESION_PAINTERS = {
    "glioma_tumor": _paint_glioma,
    "meningioma_tumor": _paint_meningioma,
    "no_tumor": lambda head, rng: None,
    "pituitary_tumor": _paint_pituitary,
}


def _average_down(image: np.ndarray, samples: int) -> np.ndarray:
    size = image.shape[0] // samples
    return image.reshape(size, samples, size, samples).mean(axis=(1, 3))


def _coil_bias(rng: _Rng, resolution: int) -> np.ndarray:
    """Return the receive coil's smooth gain around 1, (resolution, resolution)."""
    line = (np.arange(resolution) + 0.5) * (2 / resolution) - 1
    x, y = line[None, :], line[:, None]
    slope_x, slope_y, bowl = rng.normal(0, 0.10), rng.normal(0, 0.10), rng.uniform(-0.05, 0.25)
    return np.exp(slope_x * x + slope_y * y + bowl * (x * x + y * y - 0.6))
