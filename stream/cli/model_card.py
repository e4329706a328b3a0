"""The model card of a version: training, verdict, compatibility; the difference of two versions.

Facts come from the manifest and the registry; `lines` prints them, `plots` draws them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from typing import Any

from braid.encoders.evaluation.page import bars, curves, page
from braid.encoders.evaluation.verdict import outcome
from braid.encoders.manifest import Manifest

from ..registry.canaries import Canaries
from ..registry.versions import Registry

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
FOREMOST = 10  # changes of each part of a difference that are shown
LEAST_CHANGE = 0.01  # of a number, relative, that is shown
MOST_SHOWN = 60  # characters of a list
_CHECKSUM = re.compile("[0-9a-f]{16,}")
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
    """Everything about one version, as JSON. Raises RegistryError."""
    manifest = registry.manifest(name)
    now = registry.champion()
    return {
        "name": manifest.name,
        "version": manifest.version,
        "created_at": manifest.created_at,
        "champion": now is not None and now.name == name,
        "served": [asdict(one) for one in registry.history() if one.name == name],
        "canaries": [asdict(one) for one in Canaries(registry.log).all() if one.model == name],
        "space": manifest.space,
        "dim": manifest.dim,
        "modalities": list(manifest.modalities),
        "tasks": {task: config.get("kind") for task, config in manifest.tasks.items()},
        "config": manifest.config,
        "config_sha256": manifest.config_sha256,
        "parent": manifest.parent,
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
    """The card as lines of text."""
    shown = [f"{card['name']}, version {card['version']}, made {card['created_at']}"]
    shown += [f"  {line}" for line in _standing(card)]
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
        rows = [[_number(choice[key]) for key in CHOICES] for choice in card["choices"]]
        shown += [f"  {line}" for line in _table([list(CHOICES.values()), *rows])]
    if card["metrics"].get("validation"):
        shown += ["", f"On {card['metrics']['validation'].get('samples')} validation records"]
        shown += [f"  {line}" for line in _measured(card["metrics"]["validation"])]
    return shown


def _standing(card: Mapping[str, Any]) -> Iterator[str]:
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
                *(_number(gate.get(key)) for key in ("champion", "challenger", "difference")),
                " to ".join(map(_number, gate.get("interval") or ())),
                _number(gate.get("limit")),
                str(gate.get("role", "")),
                outcome(gate),
            )
            for gate in gates
        ]
        yield from _table(rows)
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
    yield "compatibility: " + ", ".join(f"{k} {_number(v)}" for k, v in simple.items())


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


def difference(left: Manifest, right: Manifest) -> dict[str, Any]:
    """What differs between two versions: facts, configuration, metrics, verdict, calibration.

    Each as path to [left, right]; None: absent.
    """
    facts = ("space", "dim", "modalities", "preprocessing", "parent", "tasks", "window", "code")
    return {
        "left": left.name,
        "right": right.name,
        "same_space": left.space == right.space,
        "facts": _changes(
            {name: getattr(left, name) for name in facts},
            {name: getattr(right, name) for name in facts},
        ),
        "config": _changes(left.config, right.config),
        "metrics": _changes(left.metrics, right.metrics),
        "verdict": _changes(left.verdict, right.verdict),
        "compatibility": _changes(left.compatibility, right.compatibility),
        "calibration": _changes(left.calibration, right.calibration),
    }


def difference_lines(changes: Mapping[str, Any], *, every: bool = False) -> list[str]:
    """A difference as lines of text: of each part what matters most.

    Args:
        every: all of it.
    """
    space = "the same space" if changes["same_space"] else "different spaces"
    shown = [f"{changes['left']} and {changes['right']}: {space}"]
    for part in ("facts", "config", "metrics", "verdict", "compatibility", "calibration"):
        changed: Mapping[str, Sequence[Any]] = changes[part]
        shown += ["", part if changed else f"{part}: no difference"]
        paths = list(changed) if every else _foremost(changed)
        rows = [(path, *map(_number, changed[path]), _gain(*changed[path])) for path in paths]
        shown += [f"  {line}" for line in _table(rows)]
        if left_out := len(changed) - len(paths):
            shown += [f"  and {left_out} more: braid models diff --all"]
    return shown


def _foremost(changed: Mapping[str, Sequence[Any]]) -> list[str]:
    """The paths of the largest changes of numbers, and of what is short and not two numbers.

    A number that is not finite is the largest change.
    """

    def relative(path: str) -> float:
        left, right = changed[path]
        if not (math.isfinite(left) and math.isfinite(right)):
            return math.inf
        return float(abs(right - left) / max(abs(left), abs(right), 1e-9))

    numbers = [path for path, pair in changed.items() if all(map(_is_number, pair))]
    moved = [path for path in numbers if relative(path) >= LEAST_CHANGE]
    largest = sorted(moved, key=relative, reverse=True)[:FOREMOST]
    words = [
        path
        for path, pair in changed.items()
        if path not in numbers and not any(_bulky(value) for value in pair)
    ]
    return sorted([*largest, *words[:FOREMOST]])


def _bulky(value: Any) -> bool:
    """Whether nobody reads it: a checksum, or a list of numbers such as the losses."""
    if isinstance(value, str):
        return _CHECKSUM.fullmatch(value) is not None
    return isinstance(value, list) and len(f"{value}") > MOST_SHOWN


def _changes(left: Any, right: Any) -> dict[str, list[Any]]:
    ours, theirs = dict(_leaves(left)), dict(_leaves(right))
    return {
        path: [ours.get(path), theirs.get(path)]
        for path in sorted({*ours, *theirs})
        if not _same(ours.get(path), theirs.get(path))
    }


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path to value of all values that are not maps; lists are values."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}" if path else str(name))
    elif value is not None:
        yield path, list(value) if isinstance(value, tuple) else value


def _same(left: Any, right: Any) -> bool:
    """Whether two values are equal; NaN is NaN."""
    return bool(left == right) or repr(left) == repr(right)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _gain(left: Any, right: Any) -> str:
    return f"{right - left:+.4g}" if _is_number(left) and _is_number(right) else ""


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value!s:.60}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
