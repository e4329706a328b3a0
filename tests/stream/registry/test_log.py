"""The registry's log: one event after another, whoever writes, and nothing is ever guessed."""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from braid.index.files import sealed_json
from braid.stream.errors import RegistryError
from braid.stream.registry.canaries import Canaries
from braid.stream.registry.handover import Handovers
from braid.stream.registry.log import EventLog
from braid.stream.registry.store import ABANDONED_S, EARLIER, FolderStore
from braid.stream.registry.versions import Registry
from tests.stream.registry.registry_model import OPERATIONS, Step, drawn, play

OPERATION = st.sampled_from(OPERATIONS)
STEP = st.builds(
    Step, OPERATION, st.none() | OPERATION, st.sampled_from([None, None, "before", "after"])
)


def log_at(root: Path) -> EventLog:
    return EventLog(FolderStore(root))


def opened(root: Path, versions: Path) -> Registry:
    """A registry of its own with the versions of another."""
    root.mkdir(exist_ok=True)
    if not (root / "versions").exists():
        (root / "versions").symlink_to(versions)
    return Registry(root, base="tiny")


@pytest.mark.slow
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(STEP, min_size=1, max_size=12))
@example(history=[Step("open"), Step("drop", "flip")])
@example(history=[Step("open"), Step("flip", "drop")])
@example(history=[Step("open", "open"), Step("flip", "flip"), Step("promote-1", "flip")])
@example(history=[Step("canary", "promote-2"), Step("canary", "canary"), Step("promote-2")])
@example(history=[Step("propose", "propose"), Step("confirm", "void"), Step("claim", "claim")])
def test_whatever_two_writers_do_the_log_is_one_history(
    three_versions: Registry, history: list[Step]
) -> None:
    with tempfile.TemporaryDirectory() as root:
        play(
            [Step("promote-1"), *history],
            lambda: opened(Path(root), three_versions.root / "versions"),
        )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(50), range(50, 100)], ids=str)
def test_writers_that_are_killed_leave_the_log_as_the_model_says(
    three_versions: Registry, tmp_path: Path, seeds: range
) -> None:
    for seed in seeds:
        root = tmp_path / str(seed)
        play(drawn(random.Random(seed)), lambda: opened(root, three_versions.root / "versions"))  # noqa: B023


def test_an_event_is_whole_and_numbered(tmp_path: Path) -> None:
    log = log_at(tmp_path)
    log.append(lambda _: log.event("claim", number=1, run="a"))
    log.append(lambda _: log.event("claim", number=2, run="b"))
    assert sorted(file.name for file in (tmp_path / "log").iterdir()) == [
        "00000001.json",
        "00000002.json",
    ]
    plain = json.loads((tmp_path / "log" / "00000002.json").read_text())
    assert (plain["kind"], plain["fields"], plain["format"]) == (
        "claim",
        {"number": 2, "run": "b"},
        1,
    )
    assert log_at(tmp_path).state() == log.state()


def test_offsets_of_many_partitions_are_read_as_they_were_written(tmp_path: Path) -> None:
    offsets = {number: 100 * number for number in range(12)}  # 10 sorts before 2 as text
    Handovers(log_at(tmp_path)).hand_over("g0001", "g0002", lambda: offsets)
    assert [one.offsets for one in Handovers(log_at(tmp_path)).confirmed()] == [offsets]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b'{"format": 1}', "sha256"),
        (sealed_json({"format": 2}), "format 2, expected 1"),
        (sealed_json({"format": 1, "kind": "claim", "at_ms": 0}), "fields"),
        (sealed_json({"format": 1, "kind": "odd", "at_ms": 0, "fields": {}}), "event 'odd'"),
        (
            sealed_json(
                {"format": 1, "kind": "claim", "at_ms": 0, "fields": {"number": 1, "run": "b"}}
            ),
            "number 1 is given already",
        ),
    ],
)
def test_what_is_no_event_is_named_and_never_guessed(
    tmp_path: Path, content: bytes, words: str
) -> None:
    registry = Registry(tmp_path)
    registry.claim("a")
    (tmp_path / "log" / "00000002.json").write_bytes(content)
    for look in (registry.champion, Canaries(registry.log).last, Registry(tmp_path).history):
        with pytest.raises(RegistryError, match=r"00000002\.json is no event of the log: ") as told:
            look()
        assert words in str(told.value)


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    log = log_at(tmp_path)
    with pytest.raises(RegistryError, match="champion number 3 after number 0"):
        log.append(
            lambda _: log.event(
                "champion",
                seq=3,
                name="x",
                version=1,
                space="s",
                generation="g0001",
                why="",
                until_ms=None,
            )
        )
    assert not (tmp_path / "log").exists()


def test_a_writer_that_others_outrun_gives_up_and_says_so(tmp_path: Path) -> None:
    waits: list[float] = []
    other = log_at(tmp_path)

    class Outrun(FolderStore):
        def create(self, key: str, content: bytes) -> None:
            run = len(other.state().claims) + 1
            other.append(lambda _: other.event("claim", number=run, run="other"))
            super().create(key, content)

    log = EventLog(Outrun(tmp_path), sleep=waits.append)
    with pytest.raises(RegistryError, match="other processes wrote to the log first, 30 times"):
        log.append(lambda _: log.event("claim", number=1000, run="this"))
    assert 1000 not in other.state().claims
    assert 0 < max(waits) <= 0.5


@pytest.mark.parametrize("folder", EARLIER)
def test_a_registry_of_an_earlier_braid_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    with pytest.raises(RegistryError, match=rf"an earlier braid \({folder}/\).*another home"):
        Registry(tmp_path).champion()


def test_a_draft_of_a_killed_writer_is_removed_in_time(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.claim("a")
    draft = tmp_path / "log" / ".00000002.json.0123"
    draft.write_bytes(b"{")
    registry.sweep(())
    assert draft.exists(), "it may be linked in a moment"
    earlier = draft.stat().st_mtime - ABANDONED_S - 1
    os.utime(draft, (earlier, earlier))
    assert registry.champion() is None
    registry.sweep(())
    assert [file.name for file in (tmp_path / "log").iterdir()] == ["00000001.json"]
