"""Formats the report of `evaluation.shapes.evaluate` as text tables."""

from __future__ import annotations

from typing import Any

TITLE_WIDTH, CELL_WIDTH = 38, 26


def table(report: dict[str, Any]) -> str:
    """Formats a report as text, with one column per split.

    The sections are the settings, exact match and its differences, attributes, variety, cosines, CLIP score and Fréchet
    distance; sections that were not run are left out.

    Args:
        report: what `evaluation.shapes.evaluate` returned, or its JSON.
    """
    parts = [_head(report), _exact_match(report), _attributes(report), _diversity(report), _cosines(report)]
    parts.append(_pictures(report))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _row(title: str, cells: list[str]) -> str:
    return f"{title:<{TITLE_WIDTH}}" + "".join(f"{cell:>{CELL_WIDTH}}" for cell in cells)


def _percent(cell: dict[str, float], sign: str = "") -> str:
    value, low, high = (f"{100 * cell[name]:{sign}.1f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _head(report: dict[str, Any]) -> list[str]:
    settings, versions = report["settings"], report["versions"]
    return [
        f"{report['run']}: {settings['num_per_split']} captions per split, one picture each (of the prior's embeddings "
        f"the best of {settings['candidates']}), seed {settings['seed']}",
        f"{report['seconds']['total']} s on {report['device']['kind']}, jax {versions['jax']}, {report['date']}",
        "parameters: " + ", ".join(f"{name} {count:,}" for name, count in report["parameters"].items()),
    ]


def _exact_match(report: dict[str, Any]) -> list[str]:
    if not report["results"]:
        return []
    lines = [_row("exact match, % [95 % interval]", list(report["splits"].values()))]
    for name, result in report["results"].items():
        lines.append(_row(report["titles"][name], [_percent(split["exact_match"]) for split in result.values()]))
        if name == "full":
            lines.append(
                _row("  against rolled captions", [f"{100 * split['rolled']:.1f}" for split in result.values()])
            )
            lines.append(_row("  chance", [f"{100 * chance:.1f}" for chance in report["chance"].values()]))
    for name, difference in report["differences"].items():
        lines.append(_row(report["titles"][name], [_percent(split, "+") for split in difference.values()]))
    return lines


def _attributes(report: dict[str, Any]) -> list[str]:
    if not report["results"]:
        return []
    lines = [_row("size, colour, shape, position, %", list(report["splits"].values()))]
    for name, result in report["results"].items():
        attributes = [split["attributes"].values() for split in result.values()]
        cells = [" ".join(f"{100 * part['value']:5.1f}" for part in parts) for parts in attributes]
        lines.append(_row(report["titles"][name], cells))
    if full := report["results"].get("full"):
        lines.append(_row("median IoU, full pipeline", [_number(split["median_iou"]) for split in full.values()]))
    return lines


def _diversity(report: dict[str, Any]) -> list[str]:
    if "diversity" not in report:
        return []
    measured = report["diversity"]
    splits = list(measured["splits"].values())
    lines = [
        _row(f"{measured['captions']} captions, {measured['samples']} times each", list(report["splits"].values())),
        _row("variety, generated / real", [_number(split["ratio"]) for split in splits]),
    ]
    for name in ("position", "size", "background"):
        lines.append(_row(f"  {name}", [_number(split[name]["ratio"]) for split in splits]))
    lines.append(_row("RMS to the nearest training picture", [f"of {measured['train_images']}" for _ in splits]))
    for name in ("generated", "real"):
        distances = [split["nearest_training_image"][name] for split in splits]
        lines.append(_row(f"  {name}", [f"{d['median']:.1f} (least {d['least']:.1f})" for d in distances]))
    return lines


def _cosines(report: dict[str, Any]) -> list[str]:
    if "cosines" not in report:
        return []
    splits = list(report["cosines"].values())
    lines = [_row("mean cosine of embeddings", list(report["splits"].values()))]
    for name in splits[0]["cosine"]:
        lines.append(_row("  " + name.replace("_", ", "), [_number(split["cosine"][name]) for split in splits]))
    return lines


def _pictures(report: dict[str, Any]) -> list[str]:
    """CLIP score and Fréchet distance of the pictures."""
    lines = []
    titles = {"real": "real pictures", "floor": "other real pictures"} | report["titles"]
    for name, title, splits in (
        ("clip_score", "mean cosine of picture and caption", report.get("clip_score")),
        ("fid", "Fréchet distance to real pictures", report.get("fid", {}).get("splits")),
    ):
        if splits is None:
            continue
        lines.append(_row(title, list(report["splits"].values())))
        for row in next(iter(splits.values())):
            lines.append(_row("  " + titles[row], [f"{split[row]:.3f}" for split in splits.values()]))
        if name == "fid":
            lines.append(f"  in: {report['fid']['features']}")
    return lines
