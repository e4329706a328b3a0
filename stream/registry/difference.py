"""The difference of two versions, as `braid models diff` prints it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from braid.encoders.manifest import Manifest

from .model_card import number, table

PARTS = ("facts", "config", "metrics", "verdict", "compatibility", "calibration")
MOST_SETTINGS, MOST_MEASURES = 8, 8  # of a short difference
MOST_SHOWN = 44  # characters of a value in it
Z95 = 1.96  # a 95 % interval, in standard errors
NO_ERROR = 0.1  # the relative change that is shown of a measure whose error is not known


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


def all_lines(left: Manifest, right: Manifest) -> list[str]:
    """A whole difference as lines of text."""
    changes, shown = difference(left, right), [_title(left, right)]
    for part in PARTS:
        changed: Mapping[str, Sequence[Any]] = changes[part]
        shown += ["", part if changed else f"{part}: no difference"]
        rows = [(path, *map(number, pair), _gain(*pair)) for path, pair in changed.items()]
        shown += [f"  {line}" for line in table(rows)]
    return shown


def short_lines(left: Manifest, right: Manifest) -> list[str]:
    """What differs in kind, and the measures that differ by more than their error."""
    settings = _settings(left, right)
    rows = [*_kinds(left, right), *settings[:MOST_SETTINGS]]
    shown = [_title(left, right)]
    if rows:
        head = ("", left.name, right.name)
        shown += [f"  {line}" for line in table([head, *(_cut(row) for row in rows)])]
    else:
        shown += ["  neither model, data nor settings differ"]
    if (more := len(settings) - MOST_SETTINGS) > 0:
        shown += [f"  and {more} more settings: --all shows all"]
    return [*shown, "", *_measured(left, right)]


def _title(left: Manifest, right: Manifest) -> str:
    space = "the same space" if left.space == right.space else "different spaces"
    return f"{left.name} and {right.name}: {space}"


def _kinds(left: Manifest, right: Manifest) -> list[tuple[str, Any, Any]]:
    """Name, left and right of what differs in model and data."""
    rows: list[tuple[str, Any, Any]] = [
        ("space", left.space, right.space),
        ("dimension", left.dim, right.dim),
    ]
    ours, theirs = _encoders(left), _encoders(right)
    for modality in dict.fromkeys([*left.modalities, *right.modalities]):
        rows.append((f"{modality} encoder", ours.get(modality), theirs.get(modality)))
    for task in sorted({*left.tasks, *right.tasks}):
        rows.append((f"task {task}", _task(left, task), _task(right, task)))
    rows += [
        ("started from", left.parent, right.parent),
        ("learnt from", _data(left), _data(right)),
    ]
    return [row for row in rows if row[1] != row[2]]


def _encoders(manifest: Manifest) -> dict[str, str]:
    known = manifest.config.get("model", {}).get("encoders", {})
    return {
        modality: " ".join(filter(None, (one.get("kind"), one.get("source"))))
        for modality, one in known.items()
    }


def _task(manifest: Manifest, name: str) -> str | None:
    raw = manifest.tasks.get(name)
    if raw is None:
        return None
    classes = raw.get("classes") or ()
    return f"{raw['kind']}: {', '.join(classes)}" if classes else str(raw["kind"])


def _data(manifest: Manifest) -> str | None:
    window = manifest.window
    if not window:
        return None
    return f"{window.get('samples')} records, run {window.get('shards_of')}"


def _settings(left: Manifest, right: Manifest) -> list[tuple[str, Any, Any]]:
    """Name, left and right of the settings that differ, but for those that `_kinds` shows."""
    both = [_encoders(left), _encoders(right)]
    other = {name for name in {*both[0], *both[1]} if both[0].get(name) != both[1].get(name)}
    shown = ("model.dim", *(f"model.encoders.{name}." for name in other))
    changed = [
        (path, *pair)
        for path, pair in _changes(left.config, right.config).items()
        if not path.startswith(shown)
    ]
    for path, pair in _changes(left.metrics, right.metrics).items():
        if path == "seed" or path.startswith("zero_shot."):
            changed.append((path, *pair))
    versions = _changes(left.code, right.code)
    return [*changed, *((name, *pair) for name, pair in versions.items())]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure of both versions.

    Attributes:
        error: half the 95 % interval of the difference.
    """

    name: str
    left: float
    right: float
    error: float

    @property
    def differs(self) -> float:
        """The difference, in errors; above 1 it is more than chance."""
        change = abs(self.right - self.left)
        if self.error > 0 and math.isfinite(change):
            return change / self.error
        return 0.0 if change == 0 else math.inf


def _measured(left: Manifest, right: Manifest) -> Iterator[str]:
    """The measures that differ by more than their error: those of the judge, where it compared the
    two, else those on each one's validation records."""
    judged = {one.verdict.get("champion"): one.verdict for one in (left, right)}
    verdict = judged.get(left.name) or judged.get(right.name) or {}
    gates = [
        gate for gate in verdict.get("gates") or [] if None not in (gate["interval"] or [None])
    ]
    if verdict:
        yield f"judged: {verdict.get('reason')}"
    if gates:
        swapped = verdict["champion"] == right.name
        yield f"on {verdict.get('records')} judge records, record by record"
        yield from _of_gates(gates, swapped=swapped)
        return
    samples = [one.metrics.get("validation", {}).get("samples", 0) for one in (left, right)]
    measures = list(_validation(left, right))
    if not measures:
        yield "no measure on validation records of both"
        return
    yield f"on {samples[0]} and {samples[1]} validation records"
    differ = [one for one in measures if one.differs > 1]
    differ.sort(key=lambda one: one.differs, reverse=True)
    rows = [
        (
            one.name,
            *map(number, (one.left, one.right)),
            f"{_gain(one.left, one.right)} ± {one.error:.2g}",
        )
        for one in differ[:MOST_MEASURES]
    ]
    yield from (f"  {line}" for line in table(rows))
    yield _rest(len(differ) - len(rows), len(measures) - len(differ))


def _of_gates(gates: Sequence[Mapping[str, Any]], *, swapped: bool) -> Iterator[str]:
    differ = [gate for gate in gates if gate["interval"][0] > 0 or gate["interval"][1] < 0]
    rows = []
    for gate in differ[:MOST_MEASURES]:
        pair = [gate["champion"], gate["challenger"]]
        bounds = gate["interval"]
        if swapped:
            pair, bounds = pair[::-1], [-bound for bound in bounds[::-1]]
        between = f"{_gain(*pair)} ({' to '.join(map(number, bounds))})"
        rows.append((str(gate["metric"]), *map(number, pair), between))
    yield from (f"  {line}" for line in table(rows))
    yield _rest(len(differ) - len(rows), len(gates) - len(differ))


def _rest(more: int, equal: int) -> str:
    left_out = f"and {more} more; " if more else ""
    return f"  {left_out}{equal} within their error (95 %); --all shows all"


def _validation(left: Manifest, right: Manifest) -> Iterator[Measure]:
    """The measures that both have on their validation records."""
    ours, theirs = (one.metrics.get("validation", {}) for one in (left, right))
    samples = [one.get("samples", 0) for one in (ours, theirs)]
    for task, scores in ours.get("accuracy", {}).items():
        other = theirs.get("accuracy", {}).get(task)
        if other is None:
            continue
        counts = [
            one.get("out_of_fold", {}).get(task, {}).get("samples", count)
            for one, count in zip((ours, theirs), samples, strict=True)
        ]
        share = left.tasks[task]["kind"] != "regression"
        for source, (one, two) in _both(scores, other):
            name = "" if source == "fused" else f": {source.removeprefix('subsets.')}"
            error = _error_of_shares((one, two), counts) if share else NO_ERROR * max(one, two)
            yield Measure(name=f"accuracy {task}{name}", left=one, right=two, error=error)
        for key, title in (("nll", "nll"), ("calibration_error", "calibration error")):
            pair = [
                one.get(key, {}).get(task, {}).get("after", {}).get("decision")
                for one in (ours, theirs)
            ]
            bounds = [one.get("interval", {}).get(task, {}).get(key) for one in (ours, theirs)]
            if None not in (*pair, *bounds):
                error = math.hypot(*((high - low) / 2 for low, high in bounds))
                yield Measure(name=f"{title} {task}", left=pair[0], right=pair[1], error=error)
    recalls = [{**one.get("recall_fused", {}), **one.get("recall", {})} for one in (ours, theirs)]
    for path, (one, two) in _both(*recalls):
        way, _, k = path.rpartition(".")
        error = _error_of_shares((one, two), samples)
        yield Measure(name=f"recall@{k} {way}", left=one, right=two, error=error)


def _both(left: Any, right: Any) -> Iterator[tuple[str, tuple[float, float]]]:
    """The numbers that both have, by path."""
    theirs = dict(_leaves(right))
    for path, value in _leaves(left):
        if _is_number(value) and _is_number(theirs.get(path)):
            yield path, (value, theirs[path])


def _error_of_shares(shares: Sequence[float], counts: Sequence[int]) -> float:
    """Half the 95 % interval of the difference of two shares of so many records (Agresti and Caffo
    2000: with one more record of either kind in each)."""
    variance = 0.0
    for share, count in zip(shares, counts, strict=True):
        adjusted = (share * count + 1) / (count + 2)
        variance += adjusted * (1 - adjusted) / (count + 2)
    return Z95 * math.sqrt(variance)


def _cut(row: Sequence[Any]) -> list[str]:
    return [
        one if len(one) <= MOST_SHOWN else f"{one[: MOST_SHOWN - 3]}..." for one in map(number, row)
    ]


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
