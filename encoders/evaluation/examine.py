"""The examination of a version before it is published: the judge's verdict and the choice of space.

    examine = examiner(registry / "braid-0001", gates=Gates(), compatibility=Compatibility())
    train(samples, config, ..., examine=examine)

Importing this module is cheap: torch is imported when a version is examined.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..manifest import digest, verify
from ..types import Examination as Examination
from ..types import Examine as Examine
from ..types import Sample
from .gates import Compatibility as Compatibility
from .gates import Gates as Gates

if TYPE_CHECKING:
    from ..model.torch_model import TorchModel


def examiner(
    champion: Path,
    *,
    gates: Gates | None = None,
    compatibility: Compatibility | None = None,
    device: str | None = None,
    seed: int = 0,
) -> Examine:
    """A callable for `train(examine=...)` that judges the version against `champion` on the judge
    split of the samples, and chooses its space.

    A challenger that fails, or that cannot replace the champion (another dimension, a missing task,
    values that are not finite), gets a verdict that is not passed: it is kept but not served, and
    has a space of its own.

    Args:
        champion: its version folder. It is verified now, before a long training.
        gates, compatibility: the limits; None for the defaults.
        device: as for `braid.encoders.load`.
        seed: of the bootstrap, the galleries and the MLP adapter.

    Raises:
        CheckpointError: the champion is damaged. The callable raises it too, if the challenger's
            folder is damaged, or if the champion's outputs are not finite.
    """
    verify(champion)
    gates, limits = gates or Gates(), compatibility or Compatibility()

    def examine(folder: Path, samples: Sequence[Sample]) -> Examination:
        from ..config import from_dict
        from ..model.checkpoint import load_folder
        from . import compatibility as across
        from . import judge as judging

        old = load_folder(champion, device=device)
        new = load_folder(folder, device=device)
        kept: list[Sample] = []
        pair = None
        try:
            if not from_dict(new.manifest.config).judge:
                reason = "not enough evidence: it was trained on the judge split too (judge=False)"
                verdict = judging.verdict(judging.TOO_LITTLE, reason, gates, champion=old.name)
            else:
                verdict, kept, pair = judging.judge(old, new, samples, gates, seed=seed)
        except judging.IncompatibleChallenger as error:
            verdict = judging.verdict(judging.REFUSED, str(error), gates, champion=old.name)
        if _vectors(old) == _vectors(new):
            choice = across.same_space(old, limits)
        elif not verdict["passed"] or pair is None:
            reason = f"not measured, the verdict is: {verdict['reason']}"
            choice = across.new_space(old, new, reason)
        else:
            min_records, resamples = gates.min_records, gates.resamples
            choice = across.choose_space(
                old,
                new,
                kept,
                pair,
                samples,
                limits,
                min_records=min_records,
                resamples=resamples,
                seed=seed,
            )
        carried = new.manifest.compatibility.get("adapter")
        compatibility_report = dict(choice.report)
        files: dict[str, bytes] = {}
        if choice.adapter is not None:
            files[compatibility_report["adapter"]["file"]] = choice.adapter.to_bytes()
        elif carried:  # it inherits the adapter of the version whose space it keeps
            compatibility_report["adapter"] = carried
        return Examination(
            verdict=verdict, compatibility=compatibility_report, space=choice.space, files=files
        )

    return examine


def _vectors(model: TorchModel) -> str:
    """A hash of all that determines vectors: weights, preprocessing, an applied adapter."""
    adapter = "" if model.adapter is None else model.adapter.to_bytes().hex()
    return digest([model.net.space(), adapter])
