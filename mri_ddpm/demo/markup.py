"""The pieces of HTML that show samples, progress and comparisons. What comes with a model is escaped here."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from mri_ddpm.demo.model import Model, Samples, Way
from mri_ddpm.demo.saving import KINDS, MEDIA_TYPES, files, pictures
from mri_ddpm.demo.streaming import Progress

BANNER = (
    '<div class="banner" role="note"><strong>Synthetic. Not for diagnosis.</strong> These images come from a diffusion '
    "model. They can show what no brain has, and can repeat what it was trained on.</div>"
)
CSS = """
.gradio-container {max-width: 1200px !important; margin: auto}
.gradio-container .html-container {padding: 0}
.banner {background: #7a1f1f; color: #fff; padding: 10px 14px; border-radius: 6px; font-size: 1rem}
.banner strong {color: inherit}
.pictures, .way {display: grid; gap: 10px; list-style: none; margin: 0; padding: 0}
.pictures {grid-template-columns: repeat(auto-fill, minmax(min(100%, 50px + 70px * var(--channels)), 1fr))}
.pictures li {margin: 0; display: grid; gap: 4px; grid-template-columns: repeat(var(--channels), 1fr)} /* a sample */
.pictures a, .pictures .missing {display: block; aspect-ratio: 1; background: #000; border-radius: 4px; overflow: hidden}
.pictures a:focus-visible {outline: 3px solid #2563eb; outline-offset: 2px}
.pictures .missing {background: none; border: 2px dashed #8a8a8a}
.pictures img, .way img {width: 100%; image-rendering: pixelated; display: block; margin: 0}
.pictures small {display: block; overflow-wrap: anywhere; line-height: 1.3; padding-top: 2px}
.way {grid-template-columns: repeat(auto-fit, minmax(min(100%, 140px * var(--channels)), 1fr)); max-width: 720px}
.way figure {margin: 0}
.progress {display: flex; gap: 12px; align-items: center; min-height: 1.6em; flex-wrap: wrap}
.progress progress {flex: 1 1 160px; height: 12px; accent-color: #2563eb}
.scroll {overflow-x: auto}
.scroll table {border-collapse: collapse; width: 100%}
.scroll th, .scroll td {text-align: left; padding: 4px 10px; border-bottom: 1px solid #8a8a8a}
.command code {white-space: pre-wrap; overflow-wrap: anywhere}
.given img {width: 128px; image-rendering: pixelated}
.legend {display: flex; flex-wrap: wrap; gap: 4px 14px}
.legend i {display: inline-block; width: 1em; height: 1em; border: 1px solid #8a8a8a; vertical-align: text-bottom}
.pairs {max-width: 100%}
button[title="Color"] svg {filter: drop-shadow(0 0 1px #000)} /* a white brush on white */
"""


def progress(told: Progress) -> str:
    """A bar, how many images are there, and the time that is left."""
    left = "" if told.seconds_left is None else f", {duration(told.seconds_left)} left"
    count = f"{told.images} of {told.num_images} images" if told.num_images > 1 else f"step {told.done}"
    return (
        f'<div class="progress"><progress aria-label="progress" max="{told.total}" value="{told.done}"></progress>'
        f"<span>{count}{left}</span></div>"
    )


def duration(seconds: float) -> str:
    """Such as ``about 3 s`` or ``about 4 min``."""
    return f"about {max(1, round(seconds))} s" if seconds < 90 else f"about {round(seconds / 60)} min"


def said(sentence: str) -> str:
    """What a screen reader reads out when it is there."""
    return f'<div class="progress" role="status">{escape(sentence)}</div>'


def data_url(content: bytes, media_type: str) -> str:
    """A file that is in the page itself, and nowhere else."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def png_url(picture: Image.Image) -> str:
    """A picture for the eye alone."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return data_url(file.getvalue(), "image/png")


def gallery(samples: Samples, kind: str, geometry: dict) -> str:
    """All samples, each a link that saves it as a file of that kind, and frames for those to come."""
    seen = {name: [png_url(picture) for picture in shown] for name, shown in pictures(samples).items()}
    items: dict[tuple, str] = {}
    for i, channel, file in files(samples, kind, geometry):
        of_class = samples.labels[i] if samples.labels else ""
        title = ", ".join(filter(None, [of_class, channel, f"seed {samples.options.seed + i}"]))
        link = data_url(file.read_bytes(), MEDIA_TYPES[KINDS[kind][0]])
        items[i, channel] = (
            f'<div><a href="{link}" download="{escape(file.name)}" title="save {escape(file.name)}">'
            f'<img src="{seen[channel][i]}" alt="synthetic image: {escape(title)}"></a><small>{escape(title)}</small></div>'
        )
    channels = list(samples.channels)
    there = ["".join(items[i, channel] for channel in channels) for i in range(len(samples))]
    return pictures_of(there, samples.num_images, len(channels))


def pictures_of(there: Sequence[str], count: int, channels: int) -> str:
    """A list of so many samples: those that are there, and frames for the others, each with all of its channels."""
    items = "".join(f"<li>{sample}</li>" for sample in there)
    frame = '<span class="missing"></span>' * channels
    frames = f'<li aria-hidden="true">{frame}</li>' * (count - len(there))
    return f'<ul class="pictures" style="--channels: {channels}">{items}{frames}</ul>'


def title(model: Model) -> str:
    """The model's name, and what it draws."""
    names = model.pipeline.channel_names
    drawn = f" It draws {escape(', '.join(names))}." if names else ""
    return f"<h1>Synthetic brain MRI</h1><p>Model <code>{escape(model.facts['model'])}</code>, {model.side}×{model.side} pixels.{drawn}</p>"


def given(scan: np.ndarray, name: str) -> str:
    """A scan ``(h, w)`` in [0, 1] that was put in."""
    picture = Image.fromarray(np.round(scan * 255).astype(np.uint8))
    return f'<div class="given"><img src="{png_url(picture)}" alt="{escape(name)}, as put in"></div>'


def colour(rgb: np.ndarray) -> str:
    """Three levels as ``#rrggbb``."""
    return "#" + "".join(f"{level:02x}" for level in rgb)


def legend(labels: Sequence[str], colours: np.ndarray) -> str:
    """Which colour a label has, and how to take it."""
    items = (
        f'<span><i style="background: {colour(rgb)}"></i> {escape(label)}</span>'
        for label, rgb in zip(labels, colours, strict=True)
    )
    return f'<div class="legend">{"".join(items)}</div><small>The palette beside the canvas chooses the colour.</small>'


def way(found: Way, step: int) -> str:
    """x_t beside the estimate of the image, at one moment."""
    t = found.timesteps[step]
    titles = {"x_t": f"x_t, t = {t}", "x_0": "estimate of the image, x_0"}
    figures = [
        f'<figure><img src="{png_url(Image.fromarray(np.ascontiguousarray(getattr(found, name)[step])))}" '
        f'alt="synthetic: {title}"><figcaption>{title}</figcaption></figure>'
        for name, title in titles.items()
    ]
    wide = found.x_t.shape[2] // found.x_t.shape[1]
    return f'<div class="way" style="--channels: {wide}">{"".join(figures)}</div>'
