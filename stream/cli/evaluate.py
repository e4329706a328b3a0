"""`braid eval`: evaluate a version on records or on a folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ..errors import ConfigError
from ..registry.versions import registry_of
from ..settings import Settings
from .common import AsJson, bar
from .model_card import calibrated


def add(app: typer.Typer, settings_of: Callable[..., Settings]) -> None:
    """Add the command to the command line."""

    @app.command("eval")
    def evaluate(
        context: typer.Context,
        model: Annotated[
            str | None, typer.Option(help="A model folder or a version's name; else the champion.")
        ] = None,
        data: Annotated[
            Path | None,
            typer.Option(help="A folder CATEGORY/NAME.{txt,png,ogg}; else `records`."),
        ] = None,
        out: Annotated[
            Path | None, typer.Option(help="Folder of the JSON and HTML reports.")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Measure a version: recall, accuracy by subset, calibration, robustness, a map.

        It reads the judge split of `records` (a tenth, without what the version or an ancestor has
        learnt) or all of a folder.

        Example: braid eval --data pictures/ --out report/
        """
        settings = settings_of(context)
        result = _version(settings, model, data, out or settings.home / "eval", as_json)
        print(json.dumps(result) if as_json else "\n".join(lines(result)), flush=True)


def _version(
    settings: Settings, model: str | None, data: Path | None, out: Path, quiet: bool
) -> dict[str, Any]:
    from braid.encoders.evaluation.page import page
    from braid.encoders.evaluation.report import report
    from braid.encoders.manifest import read_manifest
    from braid.encoders.model.checkpoint import load_folder
    from braid.encoders.model.learnt import Learnt
    from braid.encoders.training.splits import unlearnt_records
    from braid.encoders.types import Sample

    from ..datasets.sources import folder

    registry = registry_of(settings)
    place = Path(model) if model and Path(model).is_dir() else None
    if place is None:
        champion = registry.champion()
        if model is None and champion is None:
            raise ConfigError("--model: there is no champion yet; name a version or a folder")
        name = registry.resolve(model) if model else champion.name if champion else ""
        place = registry.folder(name)
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
                learnt = Learnt.read(place, read_manifest(place))
                samples, _ = unlearnt_records(
                    cast(Sequence[Sample], seen), [] if learnt is None else [learnt]
                )
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
