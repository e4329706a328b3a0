"""`braid eval` and `braid models judge`: versions on records or on a folder."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import ConfigError
from ..registry.model_card import calibrated
from ..registry.versions import Registry, registry_of
from ..settings import Settings
from .common import AsJson, bar

if TYPE_CHECKING:
    from braid.encoders.types import Sample

Data = Annotated[
    Path | None,
    typer.Option(help="A folder CATEGORY/NAME.{txt,png,ogg}; else `records`."),
]


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to the command line."""

    @app.command("eval")
    def evaluate(
        context: typer.Context,
        model: Annotated[
            str | None, typer.Option(help="A model folder or a version's name; else the champion.")
        ] = None,
        data: Data = None,
        out: Annotated[
            Path | None, typer.Option(help="Folder of the JSON and HTML reports.")
        ] = None,
        benchmark: Annotated[
            str | None,
            typer.Option(
                metavar="'NAME OPTION ...'",
                help="Run one of the source's benchmarks instead, in a clone of braid.",
            ),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Measure a version: recall, accuracy by subset, calibration, robustness, a map.

        It reads the judge split of `records` (a tenth, without what the version or an ancestor has
        learnt) or all of a folder.

        Example: braid eval --data pictures/ --out report/
        """
        if benchmark is not None:
            if model or data or out:
                raise ConfigError(
                    "--benchmark trains its own versions: no --model, --data or --out"
                )
            raise typer.Exit(_benchmark(benchmark, as_json))
        settings = settings_of(context)
        result = _version(settings, model, data, out or settings.home / "eval", as_json)
        print(json.dumps(result) if as_json else "\n".join(lines(result)), flush=True)


def _benchmark(line: str, as_json: bool) -> int:
    """Run `python -m benchmarks.NAME`; its exit status. Raises ConfigError without such a file."""
    try:
        name, *options = shlex.split(line) or [""]
    except ValueError as error:
        raise ConfigError(f"--benchmark {line}: {error}") from None
    if not name.isidentifier() or not Path("benchmarks", f"{name}.py").is_file():
        raise ConfigError(
            f"--benchmark: there is no benchmarks/{name}.py in this folder; "
            "the benchmarks come with the source: run it in a clone of braid"
        )
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    return subprocess.run([*command, "--json"] if as_json else command).returncode


def _version(
    settings: Settings, model: str | None, data: Path | None, out: Path, quiet: bool
) -> dict[str, Any]:
    from braid.encoders.evaluation.page import page
    from braid.encoders.evaluation.report import report
    from braid.encoders.manifest import read_manifest
    from braid.encoders.model.checkpoint import load_folder
    from braid.encoders.model.learnt import Learnt
    from braid.encoders.training.splits import unlearnt_records

    registry = registry_of(settings)
    champion = registry.champion()
    if model is None and champion is None:
        raise ConfigError("--model: there is no champion yet; name a version or a folder")
    place = _folder_of(registry, model or (champion.name if champion else ""))
    with bar("eval", quiet) as progress, _samples(settings, data, progress) as samples:
        if data is None:
            learnt = Learnt.read(place, read_manifest(place))
            samples, _ = unlearnt_records(samples, [] if learnt is None else [learnt])
        if not samples:
            raise ConfigError("there is no record in the judge split; try --data DIR")
        loaded = load_folder(place, device=settings.model.device)
        result = report(
            loaded, samples, progress=lambda what, done, total: progress(what, done, total, {})
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{loaded.name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / f"{loaded.name}.html").write_text(
        page(result, f"braid: {loaded.name}"), encoding="utf-8"
    )
    result["written"] = [str(out / f"{loaded.name}.{kind}") for kind in ("json", "html")]
    return result


def _folder_of(registry: Registry, model: str) -> Path:
    """Of a model folder, or of a version's name or number. Raises RegistryError."""
    place = Path(model)
    return place if place.is_dir() else registry.folder(registry.resolve(model))


@contextmanager
def _samples(settings: Settings, data: Path | None, progress: Any) -> Iterator[Sequence[Sample]]:
    """Those of a folder, or of `records`."""
    from braid.encoders.types import Sample

    from ..datasets.sources import folder

    if data is not None:
        yield [Sample(id=i.id, text=i.text, **i.media, labels=i.labels) for i in folder(data)]
        return
    from ..trainer.window import read_records

    with tempfile.TemporaryDirectory(prefix="braid-eval-") as window_at:
        window = read_records(settings, Path(window_at), progress)
        yield cast(Sequence[Sample], window.samples())


def add_judge(models: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add `judge` to `braid models`."""

    @models.command()
    def judge(
        context: typer.Context,
        first: Annotated[str, typer.Argument(help="A version's name or number, or a folder.")],
        second: Annotated[str, typer.Argument(help="The one to compare it with.")],
        data: Data = None,
        as_json: AsJson = False,
    ) -> None:
        """Compare two versions on `records`: which finds more, which predicts better, at what cost.

        Neither has to serve. What one of them has learnt is left out; nothing is changed.

        Example: braid models judge braid-0001 braid-0002 --data pictures/
        """
        result = _compared(settings_of(context), first, second, data, as_json)
        print(json.dumps(result) if as_json else "\n".join(compared(result)), flush=True)


def _compared(
    settings: Settings, first: str, second: str, data: Path | None, quiet: bool
) -> dict[str, Any]:
    from braid.encoders.evaluation.comparison import compare
    from braid.encoders.model.checkpoint import load_folder
    from braid.encoders.model.learnt import Learnt

    registry = registry_of(settings)
    places = [_folder_of(registry, one) for one in (first, second)]
    one, other = (load_folder(place, device=settings.model.device) for place in places)
    learnt = {
        model.name: Learnt.read(place, model.manifest)
        for place, model in zip(places, (one, other), strict=True)
    }
    with bar("judge", quiet) as progress, _samples(settings, data, progress) as samples:
        known = [each for each in learnt.values() if each is not None]
        result = compare(one, other, samples, learnt=known)
        count = len(samples)
    hours = {name: count * ms / 3.6e6 for name, ms in result["ms"].items()}
    unknown = [name for name, each in learnt.items() if each is None]
    return {**result, "learnt_unknown": unknown, "embed_hours": {"records": count, **hours}}


def compared(result: Mapping[str, Any]) -> list[str]:
    """A comparison as lines of text."""
    first, second = result["first"], result["second"]
    shown = [f"{result['records']} records, {result['learnt']} more that one of both has learnt"]
    for name in result["learnt_unknown"]:
        shown.append(f"what {name} has learnt is not known: it may know some of them")
    if result["unlike"]:
        shown.append(f"not both have: {', '.join(result['unlike'])}")
    for metric in result["metrics"]:
        if metric["deciding"]:
            low, high = metric["interval"]
            better = {"first": first, "second": second, None: "no difference is shown"}
            shown.append(
                f"  {metric['metric']:32s} {metric['first']:.3f} -> {metric['second']:.3f}  "
                f"{metric['difference']:+.3f} ({low:+.3f} to {high:+.3f})  "
                f"{better[metric['better']]}"
            )
    shown += [f"  {name}: too few, {count}" for name, count in result["unmeasured"].items()]
    hours, ms = result["embed_hours"], result["ms"]
    shown += [
        f"{name}: {ms[one]:.2f} ms a record here, {hours[one]:.2g} h for all {hours['records']}"
        for one, name in (("first", first), ("second", second))
    ]
    return shown


def lines(result: dict[str, Any]) -> list[str]:
    """A report as lines of text."""
    shown = [f"{result['model']['name']}: {result['samples']} samples"]
    for way, values in result["recall"].items():
        figures = ", ".join(f"@{k} {value:.3f}" for k, value in values.items())
        shown.append(f"  recall {way}: {figures}")
    for task, scores in result["accuracy"].items():
        shown.append(f"  {task}:")
        shown += [f"    {subset:20s} {value:.3f}" for subset, value in scores["subsets"].items()]
        shown += [f"    {line}" for line in calibrated(result, task)]
        fall = ", ".join(
            f"{name} {scores['fused'] - values[task]:+.3f}"
            for name, values in result["shuffled"].items()
            if name != "as it is" and task in values
        )
        shown.append(f"    lost when permuted:  {fall}")
    return [*shown, *(f"  {path}" for path in result.get("written", ()))]
