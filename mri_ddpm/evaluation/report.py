"""``report.html``: one file that needs no network, for people who read no JSON."""

import base64
from pathlib import Path

import jinja2

from mri_ddpm.evaluation.pictures import PLOTS

TEMPLATE = Path(__file__).with_name("report.html")
TITLES = {  # metric -> its title, and which way is better
    "two_sample_accuracy": ("told from real scans by a network taught to", "lower, 0.5 is guessing"),
    "wavelet_kid": ("KID of wavelets", "lower, 0 is the same"),
    "wavelet_frechet_distance": ("Fréchet distance of wavelets", "lower"),
    "detail_ratio": ("fine detail, share of real", "near 1"),
    "kid": ("KID of the features", "lower, 0 is the same"),
    "frechet_distance": ("Fréchet distance of the features", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "density": ("density", "near 1"),
    "coverage": ("coverage", "higher"),
    "ms_ssim": ("MS-SSIM between pairs", "like real"),
}
FIDELITY = {"psnr": "PSNR in dB", "ssim": "SSIM"}  # and Dice by label
SHARES = {
    "similarity_over_95th_percentile": "nearer than 95 % of validation scans come",
    "similarity_over_99th_percentile": "nearer than 99 % of validation scans come",
    "ratio_under_1st_percentile": "ratio of nearest to 50 nearest under the lowest 1 %",
}
LIMITS = (
    "Absence of evidence is not privacy. The search does not find upside-down copies, turns by much more than 15 degrees, parts of "
    "less than a quarter of a scan, or a third of the mixtures with a scan that it does not know. It knows only the training scans "
    "it was given. Slices of one patient resemble each other, so some images come close to a training scan without copying it: what "
    "counts is the share beyond what validation scans show."
)


def write_report(metrics: dict, folder: Path) -> None:
    """Write the report beside the pictures it shows, which go into it."""
    channels = metrics.get("channels", {})
    # Name, folder of the pictures and numbers of each channel; of one alone they are those of all
    parts = [(name, f"channels/{name}/", of) for name, of in channels.items()] or [("", "", metrics)]
    pictures = {
        f"{place}{name}": base64.b64encode((folder / place / name).read_bytes()).decode()
        for place in {"", *(place for _, place, _ in parts)}
        for name in PLOTS
        if (folder / place / name).is_file()
    }
    reasons = [(name, of.get("not_measured")) for name, of in {"": metrics, **channels}.items()]
    keys = [key for part in (metrics, *channels.values()) for key in part.get("quality", {})]
    untitled = {key: (key.replace("_", " "), "") for key in keys if key not in TITLES}
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    html = template.render(
        metrics=metrics,
        parts=parts,
        pictures=pictures,
        follows=any("fidelity" in of for _, _, of in parts),
        unmeasured=[reason for reason in reasons if reason[1]],
        captions=PLOTS,
        titles=TITLES | untitled,
        title_of=title_of,
        shares=SHARES,
        limits=LIMITS,
    )
    (folder / "report.html").write_text(html, encoding="utf-8")


def verdicts(metrics: dict) -> list[dict]:
    """The questions, each with the answer that the numbers allow and its tone: good, bad or open."""
    return [
        *verdicts_on_quality(metrics),
        *verdict_on_fidelity(metrics),
        *verdict_on_usefulness(metrics),
        verdict_on_copies(metrics),
    ]


def verdicts_on_quality(metrics: dict) -> list[dict]:
    """One verdict, or where there are several channels one for each contrast and one for all together."""
    if "channels" not in metrics:
        return [verdict_on_quality(metrics)]
    parts = {
        name: of_channel | {"not_measured": metrics["not_measured"] | of_channel.get("not_measured", {})}
        for name, of_channel in metrics["channels"].items()
        if "extractor" in of_channel  # no mask
    }
    if len(parts) > 1:
        parts["all contrasts together"] = metrics
    found = {name: verdict_on_quality(part) for name, part in parts.items()}
    question = "Do they look like real scans"
    return [verdict | {"question": f"{question} ({name})?"} for name, verdict in found.items()]


def verdict_on_quality(metrics: dict) -> dict:
    """Whether a network taught to tell the images from real ones, or the wavelet KID does, overall or in a class.

    Not the KID of a classifier's features, which see brightness before anatomy.
    """
    question = "Do they look like real scans?"
    quality = metrics.get("quality") or {}
    taught, distance = (quality.get(name) for name in ("two_sample_accuracy", "wavelet_kid"))
    measured = [
        *([f"a network taught to tell gets {spell(taught)} of them and of real scans right, where 0.5 is guessing"] if taught else []),
        *([f"the wavelet KID is {spell(distance)}, of real validation scans {distance['real']:.3g}"] if comparable(distance) else []),
    ]  # fmt: skip
    if not measured:
        answer = not_measured(metrics, "quality")
        if distance:
            answer = f"Not shown: the wavelet KID is {spell(distance)}, with too few validation scans to measure theirs beside it."
        return {"question": question, "tone": "open", "answer": answer}
    numbers = "; ".join(measured)
    if not (taught and taught["interval"][0] > taught["real"]) and not told_apart(distance):
        seen = min(entry["n"] for entry in (taught, distance) if entry)
        tone, answer = (
            ("good", "they do") if len(measured) == 2 else ("open", "they do, by one of two measures")
        )
        return {
            "question": question,
            "tone": tone,
            "answer": f"As far as can be told from {seen} images, {answer}: {numbers}.",
        }
    by_class = metrics.get("quality_by_class", {})
    classes = [name for name, scores in by_class.items() if told_apart(scores.get("wavelet_kid"))]
    within = f"; by class, wavelets tell {', '.join(classes)} apart" if classes else ""
    return {"question": question, "tone": "bad", "answer": f"Not quite: {numbers}{within}."}


def comparable(distance: dict | None) -> bool:
    """Whether a distance was measured of the images and of validation scans."""
    return bool(distance) and distance["real"] is not None


def told_apart(kid: dict | None) -> bool:
    """Whether a KID is surely over 0, and over what real validation scans score."""
    return bool(kid) and kid["interval"][0] > max(0, kid["real"] or 0)


def verdict_on_fidelity(metrics: dict) -> list[dict]:
    """Whether a sample is more like the scan whose condition it was given than one that was given another's."""
    measured = {
        title_of(measure) + f" of {name}" * bool(name): entry
        for name, part in {"": metrics, **metrics.get("channels", {})}.items()
        for measure, entry in (part.get("fidelity") or {}).items()
        if measure != "ssim"  # which says the same as PSNR
    }
    if not measured:
        return []  # of a model without a condition nobody asks
    gains = [entry["gain"]["interval"] for entry in measured.values()]
    answer, tone = "Not shown of all", "open"
    if all(low > 0 for low, _ in gains):
        answer, tone = "Yes", "good"
    if all(high <= 0 for _, high in gains):
        answer, tone = "No", "bad"
    numbers = "; ".join(
        f"{name} {entry['value']:.3g} ({entry['of_others']['value']:.3g})" for name, entry in measured.items()
    )
    told = f"{numbers}, in brackets with the condition of another scan of the class"
    return [{"question": "Do they follow their condition?", "tone": tone, "answer": f"{answer}: {told}."}]


def title_of(measure: str) -> str:
    """What the report calls a measure of fidelity."""
    return FIDELITY.get(measure) or measure.replace("dice_", "Dice of ").replace("_", " ")


def verdict_on_usefulness(metrics: dict) -> list[dict]:
    """Whether real and synthetic scans together train a better classifier than real ones alone."""
    found = (metrics.get("usefulness") or {}).get("validation")
    if not found:
        return []  # of a model without classes nobody asks
    gain = found["real_and_synthetic"]["gain"]["accuracy"]
    low, high = gain["interval"]
    answer, tone = "No difference was shown", "open"
    if low > 0:
        answer, tone = "Yes", "good"
    if high < 0:
        answer, tone = "No, they do harm", "bad"
    change = f"accuracy on validation scans changes by {spell(gain)} when they are added to the real ones"
    return [{"question": "Do they help a model?", "tone": tone, "answer": f"{answer}: {change}."}]


def spell(estimate: dict) -> str:
    """A number with its interval."""
    low, high = estimate["interval"]
    return f"{estimate['value']:.3g} (95 % interval {low:.3g} to {high:.3g})"


def verdict_on_copies(metrics: dict) -> dict:
    """Whether more images are taken for copies than real scans that were never trained on, or one surely is one."""
    question = "Do they copy patients?"
    audit = metrics.get("memorisation")
    if not audit:
        return {"question": question, "tone": "open", "answer": not_measured(metrics, "memorisation")}
    copies = audit["copies"]
    share, expected = copies["share"], copies["expected"]
    low, high = share["interval"]
    copied = copies["distinct_training_images"]
    of_scans = f", of {copied} training scan{'s' * (copied > 1)}" if copied else ""
    numbers = (
        f"{share['value']:.1%} of the images are taken for copies (95 % interval {low:.1%} to {high:.1%}){of_scans}, where "
        f"{expected:.0%} of real scans never trained on would be"
    )
    if copies["sure"]:
        numbers = f"{copies['sure']} of {share['n']} lie nearer to a training scan than any real scan would; {numbers}"
    answer, tone = "No more than real scans resemble each other", "good"
    if copies["sure"] or is_over(copies):
        answer, tone = "Yes, some do", "bad"
    elif high > 2 * expected:
        answer, tone = "Not shown either way", "open"
    return {"question": question, "tone": tone, "answer": f"{answer}: {numbers}."}


def not_measured(metrics: dict, part: str) -> str:
    """Why a part of the evaluation has no numbers."""
    there = "neither wavelet KID nor two-sample accuracy." if part in metrics else ""
    reason = metrics.get("not_measured", {}).get(part, there)
    return f"Not measured: {reason}" if reason else "Not measured yet."


def is_over(part: dict) -> bool:
    """Whether a share is surely over what real scans would score."""
    return part["share"]["interval"][0] > part["expected"]
