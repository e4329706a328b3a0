"""The model card of a version: training, verdict, compatibility.

Facts come from the manifest and the registry; `lines` prints them, `plots` draws them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from typing import Any

from braid.encoders.evaluation.page import bars, curves, page
from braid.encoders.evaluation.verdict import outcome
from braid.encoders.manifest import Manifest

from .canaries import Canaries
from .versions import Registry

NO_PLOTS: Mapping[str, Any] = {"shuffled": {}, "robustness": {}, "map": {"points": []}}
"""Fields that the page of `braid eval` shows and a manifest does not have."""
NO_MEASURES: Mapping[str, Any] = {
    "samples": 0,
    "accuracy": {},
    "recall": {},
    "recall_fused": {},
    "calibration_error": {},
}

AS_THEY_COME = ": as it comes"
"""The suffix of a gate's metric over records with all modalities."""
CHOICES = {
    "way": "way",
    "ratio": "R",
    "share": "share of old",
    "recall": "recall",
    "recall_cost": "recall cost",
    "accuracy_gain": "accuracy gain",
    "re_embedded": "re-embedded",
    "verdict": "",
}
"""The columns of `choices`, and their headings."""


def model_card(registry: Registry, name: str) -> dict[str, Any]:
    """Everything about one version of a registry, as JSON. Raises RegistryError."""
    now = registry.champion()
    return facts(registry.manifest(name)) | {
        "champion": now is not None and now.name == name,
        "served": [asdict(one) for one in registry.history() if one.name == name],
        "canaries": [asdict(one) for one in Canaries(registry.log).all() if one.model == name],
    }


def facts(manifest: Manifest) -> dict[str, Any]:
    """What a version's manifest says of it, as JSON."""
    return {
        "name": manifest.name,
        "version": manifest.version,
        "created_at": manifest.created_at,
        "space": manifest.space,
        "dim": manifest.dim,
        "modalities": list(manifest.modalities),
        "tasks": {task: config.get("kind") for task, config in manifest.tasks.items()},
        "config": manifest.config,
        "config_sha256": manifest.config_sha256,
        "parent": manifest.parent,
        "pulled": manifest.pulled,
        "window": manifest.window,
        "metrics": manifest.metrics,
        "verdict": manifest.verdict,
        "compatibility": manifest.compatibility,
        "choices": choices(manifest),
        "calibration": manifest.calibration,
        "files": dict(manifest.files),
        "code": dict(manifest.code),
    }


def choices(manifest: Manifest) -> list[dict[str, Any]]:
    """The ways of keeping or changing the space that were tried, with their costs.

    `recall` is that of queries among half old, half new vectors, and `recall_cost` its loss against
    a space of its own, or against no adapter if that loss is larger. `accuracy_gain`, against the
    champion over the judged tasks, is the same for all: predictions do not depend on the mapping.
    """
    compatibility = manifest.compatibility
    adapter = compatibility.get("adapter") or {}
    chosen = [compatibility.get("choice")]
    if chosen == ["adapter"]:
        chosen += [adapter.get("kind"), adapter.get("maps")]
    gains = [
        gate["difference"]
        for gate in manifest.verdict.get("gates") or []
        if gate["metric"].startswith("accuracy ") and gate["metric"].endswith(AS_THEY_COME)
    ]
    rows = []
    for tried in compatibility.get("tried") or []:
        way = [tried[key] for key in ("choice", "kind", "maps") if key in tried]
        passed = "passed" if tried["passed"] else f"failed: {', '.join(tried['failed'])}"
        rows.append(
            {
                "way": ", ".join(way),
                **{key: tried.get(key) for key in ("ratio", "share", "recall")},
                "recall_cost": tried.get("cost"),
                "accuracy_gain": sum(gains) / len(gains) if gains else None,
                "re_embedded": tried.get("re_embedded"),
                "verdict": "chosen" if way == chosen else passed,
            }
        )
    return rows


def lines(card: Mapping[str, Any]) -> list[str]:
    """The card as lines of text: titles, and below each of them indented lines."""
    shown = [f"{card['name']}, version {card['version']}, made {card['created_at']}"]
    shown += [f"  {line}" for line in _standing(card)]
    if pulled := card["pulled"]:
        shown += [f"  pulled from {pulled['place']}, where it is {pulled['name']}"]
    model = card["config"].get("model", {})
    known = model.get("encoders", {})
    encoders = ", ".join(f"{m}: {known[m]['kind']}" for m in card["modalities"] if m in known)
    tasks = ", ".join(f"{task} ({kind})" for task, kind in card["tasks"].items()) or "none"
    shown += ["", "What it is"]
    shown += [f"  {card['dim']} values in space {card['space']}"]
    shown += [f"  encoders {encoders}"] if encoders else []
    shown += [f"  fusion {model.get('fusion')}, decision {model.get('decision')}, tasks {tasks}"]
    shown += ["", "What it learnt from"]
    parent = card["parent"]
    shown += [f"  started from {parent}" if parent else "  started from scratch"]
    shown += [f"  {line}" for line in _learning(card)]
    shown += ["", "How it was judged"]
    shown += [f"  {line}" for line in _judged(card["verdict"])]
    shown += [f"  {line}" for line in _compatible(card["compatibility"])]
    if card["choices"]:
        rows = [[number(choice[key]) for key in CHOICES] for choice in card["choices"]]
        shown += [f"  {line}" for line in table([list(CHOICES.values()), *rows])]
    if card["metrics"].get("validation"):
        shown += ["", f"On {card['metrics']['validation'].get('samples')} validation records"]
        shown += [f"  {line}" for line in _measured(card["metrics"]["validation"])]
    return shown


def _standing(card: Mapping[str, Any]) -> Iterator[str]:
    if "served" not in card:  # outside of a registry
        return
    if card["champion"]:
        yield "it is the champion"
    for one in card["served"]:
        at = datetime.fromtimestamp(one["at_ms"] / 1000, UTC)
        yield f"champion number {one['seq']} from {at:%Y-%m-%d %H:%M} UTC: {one['why']}"
    if not card["served"]:
        yield "it never served"
    for one in card["canaries"]:
        comparison = one["comparison"] or {}
        on = f" on {comparison['records'] + comparison['failures']} records" if comparison else ""
        why = f": {one['why']}" if one["why"] else ""
        yield f"canary {one['number']} beside {one['champion']}{on} {one['state']}{why}"


def _learning(card: Mapping[str, Any]) -> Iterator[str]:
    window, metrics = card["window"], card["metrics"]
    if window:
        spans = window.get("offsets", {})
        yield (
            f"{window.get('samples')} records of {window.get('topic')} (run {window.get('run')}), "
            f"{window.get('unreadable', 0)} unreadable, {window.get('deleted', 0)} deleted"
        )
        yield "offsets " + ", ".join(f"{n}: {a} to {b}" for n, (a, b) in spans.items())
        yield f"{len(window.get('shards', {}))} shards, each with its sha256 in the manifest"
    left_out = ", ".join(f"{count} {why}" for why, count in metrics.get("left_out", {}).items())
    yield f"{metrics.get('train_samples')} to train on; left out: {left_out or 'nothing'}"
    losses = metrics.get("losses") or []
    if losses:
        best = f", best epoch {metrics['best_epoch']}" if "best_epoch" in metrics else ""
        again = ", then once more on train and validation" if "refit" in metrics else ""
        yield (
            f"{len(losses)} epochs, loss {losses[0]:.4f} to {losses[-1]:.4f}{best}{again}, "
            f"seed {metrics.get('seed')}"
        )


def _judged(verdict: Mapping[str, Any]) -> Iterator[str]:
    if not verdict:
        yield "not at all: there was no champion to compare it with"
        return
    yield (
        f"{verdict.get('decision')}, against {verdict.get('champion')} on "
        f"{verdict.get('records')} judge records: {verdict.get('reason')}"
    )
    gates = verdict.get("gates") or []
    if gates:
        head = ("gate", "champion", "challenger", "difference", "interval", "limit", "", "")
        rows: list[tuple[str, ...]] = [head]
        rows += [
            (
                str(gate["metric"]),
                *(number(gate.get(key)) for key in ("champion", "challenger", "difference")),
                " to ".join(map(number, gate.get("interval") or ())),
                number(gate.get("limit")),
                str(gate.get("role", "")),
                outcome(gate),
            )
            for gate in gates
        ]
        yield from table(rows)
    if verdict.get("power"):
        yield f"{verdict['power']} (error of this judgement: {verdict['level']:.2g})"
    if learnt := verdict.get("learnt"):
        yield f"{learnt} judge records were left out: learnt by one of both or an ancestor"
    for metric, count in (verdict.get("unjudged") or {}).items():
        yield f"{metric} was not judged: {count} records are too few"


def _compatible(compatibility: Mapping[str, Any]) -> Iterator[str]:
    if not compatibility:
        return
    simple = {
        key: value
        for key, value in compatibility.items()
        if isinstance(value, (str, int, float, bool))
    }
    yield "compatibility: " + ", ".join(f"{k} {number(v)}" for k, v in simple.items())


def _measured(metrics: Mapping[str, Any]) -> Iterator[str]:
    for task, scores in metrics.get("accuracy", {}).items():
        subsets = ", ".join(f"{s} {v:.3f}" for s, v in scores.get("subsets", {}).items())
        yield f"{task}, by what is present: {subsets}"
        yield from (f"{task}, {line}" for line in calibrated(metrics, task))
        if of := metrics.get("out_of_fold", {}).get(task):
            yield f"{task}: cross-fitted on {of['samples']} records in {of['folds']} folds"
    for way, depths in metrics.get("recall", {}).items():
        yield f"recall {way}: " + ", ".join(f"@{k} {value:.3f}" for k, value in depths.items())


def calibrated(metrics: Mapping[str, Any], task: str) -> Iterator[str]:
    """Lines on a task's decision: what manifests and reports have of it, with 95 % intervals."""
    interval = metrics.get("interval", {}).get(task, {})

    def within(key: str) -> str:
        return " (95 %: {:.3f} to {:.3f})".format(*interval[key]) if key in interval else ""

    if "accuracy" in interval:
        yield f"accuracy: {metrics['accuracy'][task]['fused']:.3f}{within('accuracy')}"
    for key, name in (
        ("nll", "negative log-likelihood"),
        ("calibration_error", "calibration error"),
    ):
        if found := metrics.get(key, {}).get(task):
            yield (
                f"{name}: {found['after']['decision']:.3f}{within(key)}, "
                f"before calibration {found['before']['decision']:.3f}"
            )
    if "best" in interval:
        low, high = interval["decision - best"]
        yield f"decision less {interval['best']}, the best source: {low:+.3f} to {high:+.3f}"


def plots(card: Mapping[str, Any]) -> str:
    """The card's plots as one HTML page: measurements, losses, and the gates."""
    measured = card["metrics"].get("validation") or {}
    report = {**NO_MEASURES, **measured, **NO_PLOTS}
    whole = page({**report, "model": {"space": card["space"]}}, f"braid: {card['name']}")
    metrics, extra = card["metrics"], []
    runs = {"train": metrics.get("losses") or [], "held out": metrics.get("held_out") or []}
    runs["refit"] = (metrics.get("refit") or {}).get("losses") or []
    drawn = {name: values for name, values in runs.items() if values}
    if drawn:
        ticks = [str(epoch + 1) for epoch in range(max(map(len, drawn.values())))]
        extra += ["<h2>Loss by epoch</h2>", curves(drawn, ticks)]
    rows = [
        (str(gate["metric"]), [float(gate["champion"]), float(gate["challenger"])])
        for gate in card["verdict"].get("gates") or []
        if all(isinstance(gate.get(key), (int, float)) for key in ("champion", "challenger"))
        and min(gate["champion"], gate["challenger"]) >= 0
    ]
    if rows:
        extra += [
            f"<h2>Judged against {escape(str(card['verdict'].get('champion')))}</h2>",
            f"<p>{escape(str(card['verdict'].get('reason')))}</p>",
            *(bars([row], ("champion", "challenger")) for row in rows),
        ]
    text = "<h2>The story</h2><pre>" + escape("\n".join(lines(card))) + "</pre>"
    return whole.replace("</html>", "".join(extra) + text + "</html>")


def number(value: Any) -> str:
    """A value as a cell of a table."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value!s:.60}"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines, in columns of one width."""
    if not rows:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
