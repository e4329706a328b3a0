"""No record in a verdict that a version, or any ancestor of it, has learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from braid.encoders import Manifest, Sample, preset, split, train
from braid.encoders.evaluation import judge as court
from braid.encoders.evaluation.examine import Gates, examiner
from braid.encoders.model.checkpoint import load_folder, save
from braid.encoders.training import loop
from braid.encoders.training.data import gather
from braid.encoders.training.splits import records_of
from braid.encoders.types import Examination
from tests.encoders.material import png, samples

SHORT = replace(preset("tiny"), epochs=1, refit=False)
EASY = Gates(min_records=2, accuracy=1.0, recall=1.0, latency=1e6, resamples=100, rounds=1, batch=2)


class Family:
    """Versions, with the records that each trained on, taken from the training itself."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.learnt: dict[str, dict[str, Sample]] = {}  # with all ancestors
        self.judged: list[Sample] = []
        judge = court.judge

        def spied_gather(*given: Any, **more: Any) -> Any:
            self.ids = (data := gather(*given, **more)).ids
            return data

        def spied_judge(*given: Any, **more: Any) -> Any:
            answer = judge(*given, **more)
            self.judged = answer[1]
            return answer

        monkeypatch.setattr(loop, "gather", spied_gather)
        monkeypatch.setattr(court, "judge", spied_judge)

    def add(
        self,
        name: str,
        window: list[Sample],
        *,
        judge: bool,
        parent: str | None = None,
        champion: str | None = None,
        compatible: float = 0.0,
    ) -> Manifest:
        """Train a version, judged against `champion`, and check what it was judged by."""
        self.judged = []
        made = train(
            window,
            replace(SHORT, judge=judge, compatible=compatible),
            out=self.root / name,
            name=name,
            version=len(self.learnt) + 1,
            seed=0,
            parent=self.root / parent if parent else None,
            champion=self.root / champion if champion else None,
            examine=examiner(self.root / champion, gates=EASY) if champion else None,
        )
        by_id = {one.id: one for one in window}
        self.learnt[name] = {id_: by_id[id_] for id_ in self.ids}
        for other in (parent, champion if compatible else None):
            self.learnt[name] |= self.learnt[other] if other else {}
        if champion:
            for by in (name, champion):
                seen = self.learnt[by]
                assert not seen.keys() & {one.id for one in self.judged}, by
                assert not contents(seen.values()) & contents(self.judged), by
        return made


def contents(some: Any) -> set[object]:
    return {one.audio for one in some}  # pictures and texts of one colour are common


def renamed(some: list[Sample]) -> list[Sample]:
    """The same records under other ids."""
    return [replace(one, id=f"again-{one.id}") for one in some]


def test_a_parent_that_learnt_the_judge_split_leaves_nothing_to_judge_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, made = Family(tmp_path, monkeypatch), samples(120)
    family.add("v1", made, judge=False)
    verdict = family.add("v2", made, judge=True, parent="v1", champion="v1").verdict
    assert (verdict["decision"], verdict["records"]) == ("not enough evidence", 0)
    assert verdict["learnt"] == len(records_of(made, "judge")) > 5


@pytest.mark.slow
def test_five_versions_with_flags_windows_and_rollbacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, made = Family(tmp_path, monkeypatch), samples(400)
    seen: list[dict[str, Any]] = []

    def add(name: str, window: list[Sample], **more: Any) -> None:
        seen.append(dict(family.add(name, window, **more).verdict))

    add("v1", made[:120], judge=False)
    add("v2", made[60:240], judge=True, parent="v1", champion="v1")
    add("v3", made[:200] + renamed(made[300:330]), judge=False, champion="v2", compatible=1.0)
    # v3 served and was rolled back: its successor starts from v2 again.
    add("v4", made[100:360], judge=True, parent="v2", champion="v2")
    # Repeated from v3, while v4 serves; some records come again under other ids.
    add("v5", made[150:400] + renamed(made[200:260]), judge=True, parent="v3", champion="v4")
    assert [bool(verdict.get("records")) for verdict in seen] == [False, True, False, True, True]
    assert all(verdict["learnt"] > 0 for verdict in seen[1:]), "without its lineage each leaks"


@pytest.mark.slow
def test_the_judge_split_touches_neither_weights_nor_calibration(tmp_path: Path) -> None:
    made = samples(120)
    other = [
        replace(s, image=png((7, 7, number)), labels={"colour": "red"})  # as many equal captions
        if split(s.id) == "judge"
        else s
        for number, s in enumerate(made)
    ]
    assert made != other

    def weights(given: list[Sample], judge: bool, name: str) -> bytes:
        config = replace(SHORT, judge=judge, refit=True, calibration_copies=1)
        examine = (lambda *_: Examination()) if judge else None
        train(given, config, out=tmp_path / name, name="v", version=1, seed=0, examine=examine)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights(made, True, "a") == weights(other, True, "b")
    assert weights(made, False, "c") != weights(other, False, "d")  # it would be noticed


def test_a_version_that_trained_on_the_judge_split_is_not_judged(
    version: Path, tmp_path: Path
) -> None:
    manifest = train(
        samples(60),
        replace(SHORT, judge=False),
        out=tmp_path / "v",
        name="v",
        version=2,
        seed=0,
        examine=examiner(version, gates=EASY),
    )
    judged = len(records_of(samples(60), "judge"))
    verdict = manifest.verdict
    assert (verdict["decision"], verdict["records"]) == ("not enough evidence", 0)
    assert f"; {judged} more were learnt by one of the versions" in verdict["reason"]
    assert verdict["learnt"] == judged > 0


def test_where_it_is_not_known_what_was_learnt_nothing_is_judged(
    version: Path, tmp_path: Path
) -> None:
    """An imported version, or one of an earlier braid; its descendants neither."""
    model = load_folder(version, device="cpu")
    save(model.net, tmp_path / "v", config=SHORT, name="v", version_number=2)
    result = examiner(version, gates=EASY)(tmp_path / "v", samples(40))
    assert result.verdict["decision"] == "not enough evidence"
    assert "what v or an ancestor has learnt is not known" in result.verdict["reason"]
    child = train(
        samples(60), SHORT, out=tmp_path / "w", name="w", version=3, seed=0, parent=tmp_path / "v"
    )
    assert "learnt.safetensors" not in child.files
