"""The account of a set of scans as text for people."""

from .layout import PARTS
from .split import ORDER


def format_account(manifest: dict, most_listed: int = 10, paths: dict[str, str] | None = None) -> str:
    """The account as text of some 30 lines; of unreadable files the first `most_listed` are named, by `paths` if they are given."""
    names, repeats = manifest["class_names"], manifest["repeats"]
    header = ["", *names, "total"] if names else ["", "total"]
    rows = [
        *([part, *counts["classes"].values(), counts["total"]] for part, counts in manifest["parts"].items()),
        *(
            [f"-> {split}", *counts["classes"].values(), counts["total"]]
            for split, counts in manifest["split"].items()
        ),
    ]
    patients = manifest["patients"]
    sizes = manifest["sizes"]
    lines = [
        f"{manifest['source']}: {_counted(manifest)}",
        *([format_findings(manifest)] if manifest["findings"] else []),
        "",
        *_table([header, *rows]),
        *([_patient_line(patients)] if patients else []),
        *_uneven_share(manifest),
        "",
        *(
            f"{name:7} {values['min']:.4g} to {values['max']:.4g}{unit}, median {values['median']:.4g}"
            for name, values, unit in zip(sizes, sizes.values(), (" px", " px", ""), strict=True)
        ),
        "",
    ]
    if repeats:
        lines += [
            _repeat_line("byte-identical copies", repeats["byte_identical"], manifest["parts"]),
            _repeat_line("near-identical copies beyond that", repeats["near_identical"], manifest["parts"]),
            _repeat_line("mirrored copies beyond that", repeats["mirrored"], manifest["parts"]),
            f"distinct pictures: {repeats['groups']}; with more than one class: {repeats['label_conflicts']}",
        ]
        leaks = manifest["leaks"]
        lines += [
            f"validation and testing scans whose picture or patient is in an earlier part (left out): {leaks['total']}"
            f" ({leaks['byte_identical']} byte-identical, {leaks['near_identical']} near-identical,"
            f" {leaks['mirrored']} mirrored, {leaks['of_patients']} other scans of a patient there)"
        ]
    if manifest["volumes"]:
        lines += ["", *_volume_lines(manifest["volumes"], manifest["settings"])]
    bad = [{**row, "path": (paths or {}).get(row["path"], row["path"])} for row in manifest["unreadable"]]
    lines += [f"unreadable files: {len(bad)}", *list_bad(bad, most_listed)]
    if manifest["dark"]:
        lines += [dark_warning(manifest)]
    return _printable("\n".join([*lines, "", f"content sha256: {manifest['content_sha256']}"]))


def _volume_lines(volumes: dict, settings: dict) -> list[str]:
    """What volumes there are, what of them is left out, and whether all heads have one scale."""
    total = volumes["slices"] + sum(volumes["left_out"].values())
    reasons = "".join(f", {count} {reason}" for reason, count in volumes["left_out"].items())
    spacing, field = volumes["spacing_mm"], volumes["field_of_view_mm"]
    lines = [
        f"volumes: {volumes['total']}, {volumes['oblique']} oblique; {settings['plane']}: {total} slices, {volumes['slices']} kept{reasons}",
        f"spacing: {spacing[0]:.3g} to {spacing[1]:.3g} mm; field of view: {field[0]:.4g} to {field[1]:.4g} mm",
    ]
    if field[1] > 1.1 * field[0] and not settings["field_of_view_mm"]:
        side = 10 * round(field[1] / 10)
        lines.append(
            f"heads have several scales, as fields of view differ: give --field_of_view_mm {side} for one scale"
        )
    return lines + [
        f"{count} {'volume' if count == 1 else 'volumes'}: {note}" for note, count in volumes["notes"].items()
    ]


def _uneven_share(manifest: dict) -> list[str]:
    """A line where validation became far more or less than was asked for, as patients are few and differ in size."""
    train, validation = (manifest["split"][split]["total"] for split in ("train", "validation"))
    share, asked = validation / max(train + validation, 1), manifest["settings"]["validation_share"]
    if "validation" in manifest["parts"] or asked / 2 <= share <= 2 * asked:
        return []
    return [
        f"validation is {share:.0%} of the scans, and not {asked:.0%}: whole patients and groups go there, and they are few"
    ]


def _counted(manifest: dict) -> str:
    """How many files there are; of volumes, how many slices."""
    volumes, files = manifest["volumes"], len(manifest["files"])
    if not volumes:
        return f"{files} files"
    others = files - volumes["slices"]
    return f"{volumes['total']} volumes, {volumes['slices']} slices" + (
        f", {others} other files" if others else ""
    )


def _patient_line(patients: dict) -> str:
    """How many patients each split has."""
    line = f"patients: {patients['total']}, " + ", ".join(f"{patients[split]} in {split}" for split in ORDER)
    return line + (
        f"; {patients['scans_without']} scans of unknown ones" if patients["scans_without"] else ""
    )


def format_findings(manifest: dict) -> str:
    """One paragraph on what was found among the files, what was left out and why; "" where there is nothing to say."""
    named = (
        f"{row['words']} ({row['path']})" if row["path"] else row["words"] for row in manifest["findings"]
    )
    return _printable("; ".join(named))


def _printable(text: str) -> str:
    """Text with names of files that are no UTF-8, of which printing makes an error, spelt out."""
    return text.encode(errors="backslashreplace").decode()


def dark_warning(manifest: dict) -> str:
    """What to say of scans that nearly are black: most often their values fill a part of the file's range."""
    return (
        f"warning: {manifest['dark']} scans reach less than an eighth of full brightness and will look black;"
        " 12-bit values in 16-bit files do, and all scans beside one with a far brighter pixel: bring them to the full range first"
    )


def _repeat_line(title: str, repeats: dict, parts: dict) -> str:
    return (
        f"{title}: {repeats['total']} ("
        + ", ".join(f"{repeats[f'within_{part}']} within {part}" for part in PARTS if part in parts)
        + f", {repeats['across_parts']} across)"
    )


def _table(rows: list[list]) -> list[str]:
    """Columns aligned: the first to the left, numbers and their titles to the right."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            str(cell).ljust(w) if i == 0 else str(cell).rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def list_bad(bad: list[dict], most_listed: int) -> list[str]:
    """The first of the unreadable files with their reasons, and how many more there are."""
    lines = [f"  {row['path']} {row['reason']}" for row in bad[:most_listed]]
    return lines + [f"  and {len(bad) - most_listed} more"] * (len(bad) > most_listed)
