"""A registry in an object store, on a real S3-compatible server (`tests/object_storage.py`).

Two promotions at once; a kill at each step of a promotion, a flip and an upload; torn uploads; a
store that is away, that loses answers, that is damaged; histories against the model of the log.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from braid.encoders.manifest import verify
from braid.stream.errors import ConfigError, RegistryAway, RegistryError
from braid.stream.registry.announcements import answered
from braid.stream.registry.generations import GenerationRecords
from braid.stream.registry.handover import Handovers, Ownership
from braid.stream.registry.object_store import ObjectStore
from braid.stream.registry.versions import Registry, registry_of
from braid.stream.settings import Settings, load
from tests.object_storage import BUCKET, CUT, LOSE, PASS, REFUSE, Proxy, S3Server
from tests.stream.registry.registry_model import drawn, play

pytestmark = [pytest.mark.s3, pytest.mark.slow]

FIRST, SAME, OTHER = "tiny-0001", "tiny-0002", "tiny-0003"


class Clock:
    """Seconds that pass only in `sleep`, and calls at their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for when, call in list(self.at):
            if self.now >= when:
                self.at.remove((when, call))
                call()


@pytest.fixture
def settings(proxy: Proxy, three_versions: Registry, tmp_path: Path) -> Settings:
    """Of a home whose cache has three versions, of which the store has none yet."""
    settings = Settings(
        home=tmp_path / "home",
        model={
            "name": "tiny",
            "registry": f"s3://{BUCKET}/{tmp_path.name}",
            "registry_options": proxy.options,
        },
    )
    shutil.copytree(three_versions.root / "versions", registry_of(settings).root / "versions")
    return settings


@pytest.fixture
def registry(settings: Settings) -> Registry:
    """With three versions, of which the first is champion."""
    registry = registry_of(settings)
    for name in (FIRST, SAME, OTHER):
        registry.publish(name)
    registry.promote(FIRST, generation="g0001")
    return registry


def elsewhere(settings: Settings, home: Path) -> Registry:
    """The registry as a process with another home has it."""
    return registry_of(settings.replace(home=home))


def stores(settings: Settings, clock: Clock, *, resolve_s: float = 60.0) -> ObjectStore:
    place, options = settings.model.registry, settings.model.registry_options
    assert place is not None
    return ObjectStore(place, options, resolve_s=resolve_s, clock=clock, sleep=clock.sleep)


def test_a_version_goes_from_one_home_to_another(
    settings: Settings, registry: Registry, tmp_path: Path
) -> None:
    other = elsewhere(settings, tmp_path / "other")
    assert other.names() == [FIRST, SAME, OTHER]
    assert other.champion() == registry.champion()
    assert other.manifest(SAME) == registry.manifest(SAME)
    assert not other.path(SAME).exists(), "its manifest is all that was needed"
    assert verify(other.folder(SAME)) == verify(registry.folder(SAME))
    assert other.uri_of(SAME) == f"s3://{BUCKET}/{tmp_path.name}/versions/{SAME}"
    assert other.next() == ("tiny-0004", 4)
    with pytest.raises(RegistryError, match="no version 'tiny-0009' is published"):
        other.folder("tiny-0009")


def test_a_damaged_cache_is_fetched_again_and_a_damaged_store_refused(
    settings: Settings, registry: Registry, s3: S3Server, tmp_path: Path
) -> None:
    for spoil in ("manifest.json", "model.safetensors"):
        path = registry.path(SAME) / spoil
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        verify(registry_of(settings).folder(SAME))
    theirs = s3.folder / "data" / BUCKET / tmp_path.name / "versions" / SAME
    for spoil in ("model.safetensors", "manifest.json"):
        path = theirs / spoil
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        other = elsewhere(settings, tmp_path / spoil)
        with pytest.raises(RegistryError, match="tiny-0002 is damaged in s3://"):
            other.folder(SAME)
        assert not other.path(SAME).exists()
        assert other.folder(FIRST).is_dir(), "the others are whole"


def test_of_two_that_promote_at_once_one_fails(
    settings: Settings, registry: Registry, tmp_path: Path
) -> None:
    for number in range(2, 5):
        both, outcomes = threading.Barrier(2), list[object]()
        for each in (SAME, FIRST):
            elsewhere(settings, tmp_path / each).folder(each)

        def promote(name: str, both: threading.Barrier, outcomes: list[object]) -> None:
            own = elsewhere(settings, tmp_path / name)
            own.champion()
            both.wait(10)
            try:
                outcomes.append(own.promote(name, generation="g0001", after=number - 1))  # noqa: B023
            except RegistryError as error:
                outcomes.append(error)

        threads = [
            threading.Thread(target=promote, args=(name, both, outcomes)) for name in (SAME, FIRST)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sum(isinstance(outcome, RegistryError) for outcome in outcomes) == 1, outcomes
        assert [one.seq for one in registry.history()] == list(range(1, number + 1))


STEPS = """
import sys
from braid.stream.registry.generations import GenerationRecord, GenerationRecords
from braid.stream.registry.handover import Handovers
from braid.stream.registry.versions import registry_of
from braid.stream.settings import load
registry, what, name = registry_of(load()), *sys.argv[1:]
if what == "publish":
    registry.publish(name)
elif what == "promote":
    registry.promote(name, generation="g0001")
else:
    Handovers(registry.log).hand_over("g0001", "g0002", lambda: {0: 100})
    registry.promote(name, generation="g0002", until_ms=1)
"""


def killed(settings: Settings, what: str, name: str, point: str) -> None:
    """Do it in a process that is killed at a failpoint."""
    env = os.environ | settings.environment() | {"BRAID_FAILPOINT": point.replace("#", ":kill:")}
    done = subprocess.run([sys.executable, "-c", STEPS, what, name], env=env, timeout=120)
    assert done.returncode == -9


@pytest.mark.parametrize("point", ["log-before-event#1", "log-event#1"])
def test_a_promotion_that_is_killed_happened_or_not(
    settings: Settings, registry: Registry, point: str
) -> None:
    killed(settings, "promote", SAME, point)
    happened = point == "log-event#1"
    serves = registry.champion()
    assert serves is not None
    assert (serves.seq, serves.name) == ((2, SAME) if happened else (1, FIRST))
    assert registry.promote(SAME, generation="g0001").seq == serves.seq + 1


@pytest.mark.parametrize(
    "point", ["log-before-event#1", "log-event#1", "log-event#2", "log-event#3"]
)
def test_a_flip_that_is_killed_is_finished_by_another(
    settings: Settings, registry: Registry, point: str
) -> None:
    """Its events are a proposal, the decision and the champion."""
    killed(settings, "flip", OTHER, point)
    events = int(point[-1]) - (not point.startswith("log-event"))
    handovers, state = Handovers(registry.log, patience_s=0.0), registry.log.state()
    assert [one.decision for one in state.handovers] == [[], [None], ["confirmed"]][min(events, 2)]
    assert [one.generation for one in state.champions] == ["g0001", "g0002"][: 1 + (events == 3)]
    if events < 2:
        handovers.hand_over("g0001", "g0002", lambda: {0: 100})
    if events < 3:
        registry.promote(OTHER, generation="g0002", until_ms=1)
    assert [one.decision for one in handovers.all()][-1] == "confirmed"
    assert {
        one.generation: (one.state, one.until_ms) for one in GenerationRecords(registry.log).all()
    } == {
        "g0001": ("grace", 1),
        "g0002": ("serving", None),
    }


@pytest.mark.parametrize(
    "point",
    ["upload-file#1", "upload-manifest#1", "log-event#1"],
)
def test_an_upload_that_is_killed_shows_nothing_and_goes_on(
    settings: Settings, tmp_path: Path, point: str
) -> None:
    killed(settings, "publish", FIRST, point)
    other = elsewhere(settings, tmp_path / "other")
    assert other.names() == ([FIRST] if point == "log-event#1" else [])
    registry_of(settings).publish(FIRST)
    assert other.names() == [FIRST]
    assert verify(other.folder(FIRST)) == verify(registry_of(settings).path(FIRST))


def test_an_answer_that_is_lost_is_read_back(
    settings: Settings, registry: Registry, proxy: Proxy
) -> None:
    fates = iter([LOSE, LOSE, REFUSE, LOSE])
    proxy.fate = lambda method, path: next(fates, PASS) if method == "PUT" else PASS
    assert registry.promote(SAME, generation="g0001").seq == 2
    assert registry.promote(FIRST, generation="g0001").seq == 3
    assert next(fates, None) is None
    assert [one.name for one in registry_of(settings).history()] == [FIRST, SAME, FIRST]


def test_a_torn_upload_is_sent_again(settings: Settings, proxy: Proxy, tmp_path: Path) -> None:
    cuts = iter([CUT, CUT, PASS, CUT, LOSE, CUT, CUT, REFUSE])
    proxy.fate = lambda method, path: next(cuts, PASS) if "/versions/" in path else PASS
    registry = registry_of(settings)
    registry.publish(FIRST)
    assert next(cuts, None) is None
    assert verify(elsewhere(settings, tmp_path / "other").folder(FIRST))


def test_a_store_that_is_away_for_30_s_is_waited_for_where_something_is_written(
    settings: Settings, registry: Registry, proxy: Proxy
) -> None:
    clock = Clock()
    own = Registry(registry.root, base="tiny", store=stores(settings, clock))
    own.champion()
    proxy.fate = lambda method, path: REFUSE if method == "PUT" else PASS
    clock.at.append((30.0, lambda: setattr(proxy, "fate", lambda method, path: PASS)))
    assert own.promote(SAME, generation="g0001").seq == 2
    assert 30.0 <= clock.now < 40.0
    puts = [
        path for method, path in proxy.seen if method == "PUT" and path.endswith("00000005.json")
    ]
    assert 4 < len(puts) < 40, "with a backoff"

    proxy.fate = lambda method, path: REFUSE if method == "PUT" else PASS
    with pytest.raises(RegistryAway, match=r"whether log/00000006\.json was written is not known"):
        own.promote(FIRST, generation="g0001")
    assert clock.now < 110.0


def test_while_the_store_is_away_processes_keep_what_they_have(
    settings: Settings, registry: Registry, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    own = Registry(registry.root, base="tiny", store=stores(settings, clock))
    first = own.folder(FIRST)
    ownership = Ownership(Handovers(own.log), generation="g0001", first="g0001")
    assert ownership.owns([(0, 0)]) == [True]
    with proxy.away():
        for _ in range(3):
            with pytest.raises(RegistryAway, match=r"reading log/00000005\.json failed"):
                own.champion()
            assert ownership.owns([(0, 0)]) is None, "a handover may be proposed"
        assert own.folder(FIRST) == first
        asked = len(proxy.seen)
        with pytest.raises(RegistryAway):
            own.champion()
        assert len(proxy.seen) == asked, "not before the pause is over"
    clock.sleep(60)
    assert ownership.owns([(0, 0)]) == [True]
    assert caplog.text.count("nothing is published until the registry answers") == 1


def test_a_process_that_starts_while_the_store_is_away_waits_and_says_so(
    settings: Settings, registry: Registry, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings.replace(model={"poll_s": 0.05})
    began = registry_of(settings)

    async def start() -> None:
        with proxy.away():
            waiting = asyncio.create_task(answered(settings, began.champion))
            while "waiting for the registry: s3://" not in caplog.text:
                await asyncio.sleep(0.02)
            assert not waiting.done()
        assert await waiting == registry.champion()

    asyncio.run(asyncio.wait_for(start(), 60))


@pytest.mark.parametrize("seed", range(2))
def test_histories_on_a_store_that_loses_requests_and_answers(
    settings: Settings, registry: Registry, proxy: Proxy, seed: int
) -> None:
    """The registry begins with three versions, and a champion that a history begins with."""
    rng, clock = random.Random(seed), Clock()
    place = f"{settings.model.registry}/{seed}"
    own = settings.replace(model={"registry": place})
    root = registry_of(own).root
    root.mkdir(parents=True)
    (root / "versions").symlink_to(registry.root / "versions")

    def opened() -> Registry:
        store = ObjectStore(place, proxy.options, clock=clock, sleep=clock.sleep)
        return Registry(root, base="tiny", store=Patient(store, clock))  # type: ignore[arg-type]

    for name in (FIRST, SAME, OTHER):
        opened().publish(name)
    proxy.fate = lambda method, path: rng.choices((PASS, LOSE, REFUSE), (8, 1, 1))[0]
    play(drawn(rng, 6), opened)


class Patient:
    """A store of a process that asks again when there is no answer."""

    def __init__(self, store: ObjectStore, clock: Clock) -> None:
        self._store, self._clock = store, clock

    def __getattr__(self, name: str) -> object:
        call = getattr(self._store, name)

        def patiently(*args: object) -> object:
            for _ in range(20):
                try:
                    return call(*args)
                except RegistryAway:
                    self._clock.sleep(5)
            return call(*args)

        return patiently


def test_what_was_removed_is_gone_everywhere(
    settings: Settings, registry: Registry, s3: S3Server, tmp_path: Path
) -> None:
    other = elsewhere(settings, tmp_path / "other")
    other.folder(SAME)
    with pytest.raises(RegistryError, match="tiny-0001 is the champion"):
        registry.remove(FIRST)
    registry.remove(SAME)
    assert other.names() == [FIRST, OTHER]
    with pytest.raises(RegistryError, match="no version 'tiny-0002' is published"):
        other.folder(SAME)
    assert not registry.path(SAME).exists()
    versions = s3.folder / "data" / BUCKET / tmp_path.name / "versions"
    assert sorted(path.name for path in versions.iterdir() if any(path.iterdir())) == [FIRST, OTHER]
    other.sweep(())
    assert not other.path(SAME).exists()
    with pytest.raises(RegistryError, match="tiny-0002 was removed"):
        other.log.append(lambda _: other.log.event("version", name=SAME, sha256="0"))


def test_no_bucket_no_permission_and_a_wrong_option_are_named(
    settings: Settings, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = settings.replace(model={"registry": "s3://nowhere/registry"})
    with pytest.raises(RegistryAway, match="NoSuchBucket"):
        registry_of(nowhere).champion()
    options = {**proxy.options, "endpont": "x"}
    with pytest.raises(ConfigError, match="endpont"):
        registry_of(settings.replace(model={"registry_options": options}))
    with pytest.raises(ConfigError, match="credentials come from the environment") as refused:
        load(model={"registry_options": {"secret_access_key": "hidden-secret"}})
    assert "hidden-secret" not in str(refused.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(RegistryAway, match="SignatureDoesNotMatch"):
        registry_of(settings).champion()
    with pytest.raises(RegistryError, match="not allowed") as told:
        stores(settings, Clock()).create("log/00000001.json", b"")
    assert "wrong-secret" not in str(told.value)
