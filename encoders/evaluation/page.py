"""The report as one HTML page with SVG plots and no external files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from braid.modalities import MODALITIES

COLOURS = (
    "#2563eb",
    "#dc2626",
    "#059669",
    "#d97706",
    "#7c3aed",
    "#0891b2",
    "#db2777",
    "#65a30d",
    "#475569",
    "#ea580c",
    "#4f46e5",
    "#0d9488",
    "#b91c1c",
    "#a16207",
    "#9333ea",
    "#1d4ed8",
)
STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #6b7280; --line: #d1d5db; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --soft: #9ca3af; --line: #374151; --back: #111827; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { color: var(--soft); margin: .2rem 0 .8rem; } svg { width: 100%; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } figure { margin: 0; }
"""

OWN_VECTOR = "recall@1, @5 and @10: is the record's own vector among the first hits?"
FUSED_QUERY = "the query is the fused vector of what stands left of the arrow"


def page(report: Mapping[str, Any], title: str) -> str:
    """The report of `braid.encoders.evaluation.report.report` as an HTML page."""
    model = report.get("model", {})
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{report['samples']} samples, space {escape(str(model.get('space', '')))}</p>",
    ]
    for recalls, heading, about in (
        ("recall", "Retrieval between modalities", OWN_VECTOR),
        ("recall_fused", "Retrieval by fused queries", FUSED_QUERY),
    ):
        rows = [(way, [by[k] for k in ("1", "5", "10")]) for way, by in report[recalls].items()]
        if rows:
            parts += [f"<h2>{heading}</h2><p>{about}</p>", bars(rows, ("@1", "@5", "@10"))]
    for task, scores in report["accuracy"].items():
        rows = [(subset, [value]) for subset, value in scores["subsets"].items()]
        rows += [("fused vector alone", [scores["fused head"]])] if "fused head" in scores else []
        parts += [f"<h2>{escape(task)}: the decision by what is present</h2>", bars(rows, ("",))]
        errors = report["calibration_error"].get(task)
        if errors:
            rows = [
                (source, [before, errors["after"][source]])
                for source, before in errors["before"].items()
            ]
            parts += [
                f"<h2>{escape(task)}: calibration error</h2>",
                "<p>how far confidence and accuracy are apart; smaller is better</p>",
                bars(rows, ("before", "after")),
            ]
        parts += _robust(report, task, scores)
        shuffled = report["shuffled"]
        rows = [(name, [scores[task]]) for name, scores in shuffled.items() if task in scores]
        parts += [
            f"<h2>{escape(task)}: with one modality permuted among the records</h2>",
            "<p>no fall means that the modality is not used</p>",
            bars(rows, ("",)),
        ]
    if report["map"]["points"]:
        parts += [
            "<h2>The shared space</h2>",
            "<p>fused vectors on their first two principal components, coloured by label</p>",
            scatter(report["map"]["points"], report["map"]["label"], report["map"]["ids"]),
        ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _robust(report: Mapping[str, Any], task: str, scores: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, steps in report["robustness"].items():
        shown = [step for step in steps if task in step["accuracy"]]
        if not shown:
            continue
        lines = {
            source: [scores[source], *(step["accuracy"][task].get(source) for step in shown)]
            for source in ("fused", "fused head", *MODALITIES)
            if source in scores
        }
        lines["decision"] = lines.pop("fused")
        ticks = ["as it is", *(f"{step['level']:g}" for step in shown)]
        parts += [
            f"<h2>{escape(task)}: {escape(name)} made worse</h2>",
            f"<p>{escape(shown[0]['unit'])}</p>",
            curves(lines, ticks),
        ]
    return parts


def bars(rows: Iterable[tuple[str, Sequence[float]]], series: Sequence[str]) -> str:
    """Horizontal bars from 0 to 1 (or the largest value): a group per row, a bar per series."""
    rows = list(rows)
    top = max([1.0, *(value for _, values in rows for value in values)])
    left, width, height, gap = 190, 500, 13, 8
    out, y = [], 18
    for i, name in enumerate(series if len(series) > 1 else ()):
        out.append(
            f'<rect x="{left + 90 * i}" y="0" width="10" height="10" fill="{COLOURS[i]}"/>'
            f'<text x="{left + 90 * i + 14}" y="10">{escape(name)}</text>'
        )
    for name, values in rows:
        middle = y + height * len(values) / 2 + 4
        out.append(f'<text x="{left - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>')
        for i, value in enumerate(values):
            size = max(1.0, width * value / top)
            out.append(
                f'<rect x="{left}" y="{y}" width="{size:.1f}" height="{height - 2}" rx="2" '
                f'fill="{COLOURS[i]}"/><text x="{left + size + 6:.1f}" y="{y + 10}">{value:.3f}'
                "</text>"
            )
            y += height
        y += gap
    return _svg(780, y, out)


def curves(lines: Mapping[str, Sequence[float | None]], ticks: Sequence[str]) -> str:
    """One line per name over the ticks, from 0 to the largest value or 1."""
    left, top, width, height = 40, 10, 560, 200
    peak = max([1.0, *(v for values in lines.values() for v in values if v is not None)])
    out = []
    for share in (0.0, 0.5, 1.0):
        y = top + height * (1 - share)
        out.append(
            f'<line class="axis" x1="{left}" x2="{left + width}" y1="{y}" y2="{y}"/>'
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{peak * share:g}</text>'
        )
    step = width / max(1, len(ticks) - 1)
    for i, tick in enumerate(ticks):
        out.append(
            f'<text x="{left + step * i:.1f}" y="{top + height + 18}" text-anchor="middle">'
            f"{escape(tick)}</text>"
        )
    for i, (name, values) in enumerate(lines.items()):
        points = " ".join(
            f"{left + step * x:.1f},{top + height * (1 - value / peak):.1f}"
            for x, value in enumerate(values)
            if value is not None
        )
        colour = COLOURS[i % len(COLOURS)]
        out.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{left + width + 12}" y="{top + 14 + 18 * i}" style="fill:{colour}">'
            f"{escape(name)}</text>"
        )
    return _svg(780, top + height + 28, out)


def scatter(points: Sequence[Sequence[float]], labels: Sequence[str], ids: Sequence[str]) -> str:
    """Points coloured by label, with ids as tooltips."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    width, height = 600, 460

    def place(value: float, low: float, high: float, size: int) -> float:
        return 10 + (size - 20) * (value - low) / max(high - low, 1e-9)

    names = sorted(set(labels))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    out = [
        f'<circle cx="{place(x, min(xs), max(xs), width):.1f}" '
        f'cy="{height - place(y, min(ys), max(ys), height):.1f}" r="3.5" fill="{colour[label]}" '
        f'fill-opacity="0.75"><title>{escape(id_)}: {escape(label)}</title></circle>'
        for (x, y), label, id_ in zip(points, labels, ids, strict=True)
    ]
    for i, name in enumerate(names[:24]):
        out.append(
            f'<text x="{width + 14}" y="{20 + 18 * i}" style="fill:{colour[name]}">'
            f"{escape(name or 'no label')}</text>"
        )
    return _svg(780, height, out)


def _svg(width: int, height: float, parts: Iterable[str]) -> str:
    return (
        f'<figure><svg viewBox="0 0 {width} {height:g}" role="img">{"".join(parts)}</svg></figure>'
    )
