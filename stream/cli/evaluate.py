"""`braid eval`: evaluate a version, or run a benchmark."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..registry.versions import Registry
from ..settings import Settings
from .common import AsJson, bar

INDEX = ("exact", "approximate", "filters", "ingest", "freshness", "restart")
BENCHMARKS = {
    "stamps": "stamps",
    "av-digits": "av_digits",
    "xor": "xor",
    **{f"index-{name}": f"index_{name}" for name in INDEX},
}
TRAINED = ("stamps", "av-digits", "xor")
SYNTHETIC = tuple(name for name in BENCHMARKS if name not in ("stamps", "av-digits"))  # no folder


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Give the command line this command."""

    @app.command("eval")
    def evaluate(
        context: typer.Context,
        benchmark: Annotated[
            str | None, typer.Option(help=f"One of {', '.join(BENCHMARKS)}.")
        ] = None,
        model: Annotated[
            str | None, typer.Option(help="A model folder or a version's name; else the champion.")
        ] = None,
        data: Annotated[
            Path | None,
            typer.Option(
                help="A folder CATEGORY/NAME.{txt,png,ogg}; else `records`. A benchmark's data."
            ),
        ] = None,
        out: Annotated[Path | None, typer.Option(help="Where report.json and .html go.")] = None,
        seeds: Annotated[int | None, typer.Option(help="Trainings of a benchmark.")] = None,
        part: Annotated[
            str | None, typer.Option(help="Only this part of a benchmark; it names them.")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Measure a version: recall, accuracy by subset, calibration, robustness, a map.

        Without --benchmark it looks at the judge split of `records` (a tenth that no training
        touches) or at all of a folder.

        Example: braid eval --benchmark xor --json
        """
        if benchmark is not None:
            result = _benchmark(benchmark, data, seeds, part, as_json)
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                (out / f"{benchmark}.json").write_text(json.dumps(result, indent=1) + "\n")
            return
        settings = settings_of(context)
        result = _version(settings, model, data, out or settings.home / "eval", as_json)
        print(json.dumps(result) if as_json else "\n".join(lines(result)), flush=True)


def _benchmark(
    name: str, data: Path | None, seeds: int | None, part: str | None, as_json: bool
) -> dict[str, Any]:
    """Run `benchmarks/NAME.py` of this checkout as its own command line would."""
    if name not in BENCHMARKS:
        raise ConfigError(f"--benchmark: no {name!r}; there are {', '.join(BENCHMARKS)}")
    if data is not None and name in SYNTHETIC:
        raise ConfigError(f"--data: {name} makes its own data")
    if seeds is not None and name not in TRAINED:
        raise ConfigError(f"--seeds: {name} trains nothing")
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / f"{BENCHMARKS[name]}.py").is_file():
        raise ConfigError("--benchmark: the benchmarks come with the source, not with the package")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    module = importlib.import_module(f"benchmarks.{BENCHMARKS[name]}")
    flags = ["--json"] if as_json else []
    flags += [] if data is None else ["--data", str(data)]
    flags += [] if seeds is None else ["--seeds", str(seeds)]
    flags += [] if part is None else ["--part", part]
    result: dict[str, Any] = module.main(flags)
    return result


def _version(
    settings: Settings, model: str | None, data: Path | None, out: Path, quiet: bool
) -> dict[str, Any]:
    from braid.encoders.evaluation.page import page
    from braid.encoders.evaluation.report import report
    from braid.encoders.model.checkpoint import load_folder
    from braid.encoders.training.splits import split
    from braid.encoders.types import Sample

    from ..datasets.sources import folder

    registry = Registry(settings.models_dir, base=settings.model_name)
    place = Path(model) if model and Path(model).is_dir() else None
    if place is None:
        champion = registry.champion()
        if model is None and champion is None:
            raise ConfigError("--model: there is no champion yet; name a version or a folder")
        name = registry.resolve(model) if model else champion.name if champion else ""
        place = registry.path(name)
    with bar("eval", quiet) as progress:
        if data is not None:
            samples = [
                Sample(id=i.id, text=i.text, image=i.image, audio=i.audio, labels=i.labels)
                for i in folder(data)
            ]
        else:
            from ..trainer.window import read_records

            with tempfile.TemporaryDirectory(prefix="braid-eval-") as window_at:
                seen = read_records(settings, Path(window_at), progress).samples()
                samples = [sample for sample in seen if split(sample.id) == "judge"]
        if not samples:
            raise ConfigError("there is no record in the judge split; try --data DIR")
        loaded = load_folder(place, device=settings.device)
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


def lines(result: dict[str, Any]) -> list[str]:
    """A report for a person."""
    shown = [f"{result['model']['name']}: {result['samples']} samples"]
    for way, values in result["recall"].items():
        figures = ", ".join(f"@{k} {value:.3f}" for k, value in values.items())
        shown.append(f"  recall {way}: {figures}")
    for task, scores in result["accuracy"].items():
        shown.append(f"  {task}:")
        shown += [f"    {subset:20s} {value:.3f}" for subset, value in scores["subsets"].items()]
        errors = result["calibration_error"].get(task)
        if errors:
            before, after = errors["before"]["decision"], errors["after"]["decision"]
            shown.append(f"    calibration error    {after:.3f} (before: {before:.3f})")
        fall = ", ".join(
            f"{name} {scores['fused'] - values[task]:+.3f}"
            for name, values in result["shuffled"].items()
            if name != "as it is" and task in values
        )
        shown.append(f"    lost when permuted:  {fall}")
    return [*shown, *(f"  {path}" for path in result.get("written", ()))]
