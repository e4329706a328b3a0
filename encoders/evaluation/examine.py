"""The examination of a version before it is published: the judge's verdict and the choice of space.

    examine = examiner(registry / "braid-0001", gates=Gates(), compatibility=Compatibility())
    train(samples, config, ..., examine=examine)

Importing this module is cheap: torch is imported when a version is examined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..manifest import Manifest, digest, verify
from ..types import Examination as Examination
from ..types import Examine as Examine
from ..types import Sample
from .gates import Compatibility as Compatibility
from .gates import Gates as Gates

if TYPE_CHECKING:
    from ..model.learnt import Learnt
    from ..model.torch_model import TorchModel


def examiner(
    champion: Path,
    *,
    gates: Gates | None = None,
    compatibility: Compatibility | None = None,
    device: str | None = None,
    seed: int = 0,
    level: Callable[[], float] | None = None,
) -> Examine:
    """A callable for `train(examine=...)` that judges the version against `champion` on the judge
    split of the samples, without what one of both or an ancestor has learnt, and chooses its space.

    A challenger that fails, or that cannot replace the champion (a missing task, values that are
    not finite), gets a verdict that is not passed: it is kept but not served, and has a space of
    its own. Of one of which there is not enough evidence the space is chosen. One of another
    dimension is judged as any other, and has a space of its own.

    Args:
        champion: its version folder. It is verified now, before a long training.
        gates, compatibility: the limits; None for the defaults.
        device: as for `braid.encoders.load`.
        seed: of the bootstrap, the galleries and the MLP adapter.
        level: gives the error that the judgement may make, when it begins; None for `gates.level`.

    Raises:
        CheckpointError: the champion is damaged. The callable raises it too, if the challenger's
            folder is damaged, or if the champion's outputs are not finite.
    """
    verify(champion)
    gates, limits = gates or Gates(), compatibility or Compatibility()

    def examine(folder: Path, samples: Sequence[Sample]) -> Examination:
        from ..model.checkpoint import load_folder
        from . import compatibility as across
        from . import judge as judging
        from .verdict import PASSED, REFUSED, TOO_LITTLE
        from .verdict import verdict as verdict_of

        old = load_folder(champion, device=device)
        new = load_folder(folder, device=device)
        kept: list[Sample] = []
        pair = None
        try:
            judging.check_can_replace(old.manifest, new.manifest)
            learnt, unknown = learnt_by({champion: old.manifest, folder: new.manifest})
            if unknown:
                reason = (
                    f"{TOO_LITTLE}: what {unknown} or an ancestor has learnt is not known "
                    "(imported with --saw-records, bridged, or of an earlier braid)"
                )
                verdict = verdict_of(TOO_LITTLE, reason, gates, champion=old.name)
            else:
                spent = gates.level if level is None else level()
                verdict, kept, pair = judging.judge(
                    old, new, samples, gates, learnt=learnt, level=spent, seed=seed
                )
        except judging.IncompatibleChallenger as error:
            verdict = verdict_of(REFUSED, str(error), gates, champion=old.name)
        if _vectors(old) == _vectors(new):
            choice = across.same_space(old, limits)
        elif old.dim != new.dim:
            reason = f"{new.name} makes vectors of {new.dim} dimensions, {old.name} of {old.dim}"
            choice = across.new_space(old, new, reason)
        elif verdict["decision"] not in (PASSED, TOO_LITTLE) or pair is None:
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


def learnt_by(versions: Mapping[Path, Manifest]) -> tuple[list[Learnt], str]:
    """What versions and their ancestors have learnt; the name of one of which it is unknown."""
    from ..model.learnt import Learnt

    learnt = []
    for folder, manifest in versions.items():
        if (one := Learnt.read(folder, manifest)) is None:
            return [], manifest.name
        learnt.append(one)
    return learnt, ""


def _vectors(model: TorchModel) -> str:
    """A hash of all that determines vectors: weights, preprocessing, an applied adapter."""
    adapter = "" if model.adapter is None else model.adapter.to_bytes().hex()
    return digest([model.net.space(), adapter])
