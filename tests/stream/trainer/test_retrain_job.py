"""The periodic job: killed at any moment, two at once, a lost lock, several processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from braid.encoders.errors import CheckpointError, TrainingError
from braid.encoders.manifest import read_manifest
from braid.stream.cli.retrain import SHAPING, repeated
from braid.stream.errors import ConfigError, LockError, RegistryError, Unreachable, WindowError
from braid.stream.registry.generations import GenerationRecord, GenerationRecords
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings
from braid.stream.trainer.job import Job, Outcome, lead
from braid.stream.trainer.lock import TrainerLock, holder
from braid.stream.trainer.options import Options
from braid.stream.trainer.retrain import retrain
from braid.stream.trainer.runs import Run, Runs
from braid.stream.trainer.window import SHARDS, Progress, Window, write_window
from tests.stream.trainers import GATES, read, run, state, tell, told

ROOT = Path(__file__).parents[3]


def losses(home: Path, name: str) -> list[float]:
    metrics = read_manifest(home / "models" / "versions" / name).metrics
    return [*metrics["losses"], *metrics["refit"]["losses"]]


def script(*arguments: str, launcher: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.stream.trainers", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainers")


@pytest.fixture(scope="module")
def stories(home: Path, _shared_valkey: str) -> list[dict[str, Any]]:
    """What tests.stream.trainers says, all scenarios in one process."""
    return script("all", str(home), _shared_valkey)


def of(stories: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [story for story in stories if story["what"] == what]


@pytest.mark.redis
@pytest.mark.timeout(900)
def test_a_trainer_killed_at_twenty_moments_is_gone_on_with(
    stories: list[dict[str, Any]], home: Path
) -> None:
    """Every line was written after `verify` had read every version and the champion."""
    killed = of(stories, "killed")
    assert [story["status"] for story in killed].count(-signal.SIGKILL) == 20
    assert {story["status"] for story in killed} <= {0, -signal.SIGKILL}, killed
    for story in killed:
        assert story["champion"] in story["versions"]
        assert [run for run in story["runs"] if run[1] == "given up"] == []
    assert len({tuple(story["epochs"]) for story in killed}) > 2, "they died at different moments"
    (last,) = of(stories, "last")
    assert last["status"] == 0, last["error"]
    assert {run[1] for run in last["runs"]} == {"done"}
    assert last["champion"] == last["versions"][-1]
    assert [run[0] for run in last["runs"]] == last["versions"], "each run made its one version"
    # In order, not by name: a trainer that dies with a number claimed and no run leaves it unused.
    for name, undisturbed in zip(
        last["versions"], state(home / "undisturbed")["versions"], strict=True
    ):
        assert losses(home / "killed", name) == pytest.approx(
            losses(home / "undisturbed", undisturbed), abs=1e-6
        )
    left = [p.name for p in (home / "killed" / "models" / "versions").glob(".*")]
    assert left == [], "drafts of killed trainers are swept"


@pytest.mark.redis
@pytest.mark.timeout(900)
def test_of_two_trainers_one_runs_and_the_other_says_why_not(
    stories: list[dict[str, Any]],
) -> None:
    one, other = sorted(of(stories, "two"), key=lambda story: int(story["status"]))
    assert (one["status"], other["status"]) == (0, 1)
    assert re.search(
        rf"LockError: another trainer runs: process {one['pid']} on \S+ since 20", other["error"]
    )
    assert one["versions"] == ["braid-0001", "braid-0002", *one["versions"][2:]]
    assert [run[1] for run in one["runs"]].count("open") == 0


@pytest.mark.redis
@pytest.mark.timeout(900)
def test_a_trainer_that_lost_its_lock_does_not_promote_over_another(
    stories: list[dict[str, Any]],
) -> None:
    (seen,), (other,), (paused,) = (of(stories, what) for what in ("holder", "other", "paused"))
    assert seen["holder"]["pid"] == paused["pid"]
    assert other["status"] == 0, other["error"]
    assert paused["status"] == 1
    assert re.match(
        r"RegistryError: (braid-\d+) is not promoted: it was trained as successor of champion "
        r"number (\d+), and number (\d+) \(" + other["champion"] + r"\) was promoted since",
        paused["error"],
    )
    assert paused["champion"] == other["champion"]
    assert set(paused["versions"]) - set(other["versions"]), "its version is kept"


@pytest.mark.slow
def test_two_processes_read_their_own_partitions_and_train_one_version(
    stories: list[dict[str, Any]], home: Path, tmp_path: Path
) -> None:
    script(
        "one",
        str(tmp_path),
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    )
    assert state(tmp_path)["versions"] == ["braid-0001"]
    assert losses(tmp_path, "braid-0001") == pytest.approx(
        losses(home / "undisturbed", "braid-0001"), abs=1e-4
    )
    ours, theirs = (
        read_manifest(place / "models" / "versions" / "braid-0001")
        for place in (tmp_path, home / "undisturbed")
    )
    assert ours.metrics["left_out"] == theirs.metrics["left_out"]
    assert ours.metrics["train_samples"] == theirs.metrics["train_samples"]


# ---- one process, this one


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first version, and a candidate that was not promoted. Tests copy it."""
    home = tmp_path_factory.mktemp("finished")
    run(home)
    run(home, heads_only=True, seed=1)
    return home


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "home")
    return tmp_path / "home"


@pytest.mark.slow
def test_the_first_serves_and_the_second_waits(finished: Path) -> None:
    assert state(finished)["champion"] == "braid-0001"
    assert [fact["key"] for fact in told(finished)] == [
        "version/braid-0001",
        "champion",
        "champion",  # the second trainer announces it anew
        "version/braid-0002",
    ]
    assert told(finished)[-1]["status"] == "candidate"
    second = read_manifest(finished / "models" / "versions" / "braid-0002")
    assert second.parent == "braid-0001"
    assert second.verdict["passed"] is True
    assert second.verdict["champion"] == "braid-0001"


@pytest.mark.slow
def test_a_run_is_repeated_on_its_window_to_the_same_metrics(copy: Path) -> None:
    def nothing(*_: object) -> Any:
        raise AssertionError("the window must not be read again")

    settings = Settings(home=copy, refresh={"gates": GATES})
    window = read_manifest(copy / "models" / "versions" / "braid-0002").window
    again = retrain(
        settings,
        Options(preset="tiny", heads_only=True, seed=1, window="braid-0002"),
        read=nothing,
        tell=tell,
    )
    before = read_manifest(copy / "models" / "versions" / "braid-0002")
    assert again.manifest.name == "braid-0003"
    assert again.manifest.metrics == before.metrics
    assert again.manifest.window is not None
    assert window is not None
    assert again.manifest.window["shards"] == window["shards"]
    assert Runs(copy / "training").resolve("braid-0003").window_of == window["run"]


def test_a_flipped_bit_in_a_shard_is_found_before_training(copy: Path) -> None:
    folder = copy / "training" / Runs(copy / "training").resolve("braid-0002").id
    shard = sorted((folder / SHARDS).iterdir())[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(WindowError, match=rf"{shard.name} is damaged: sha256 \w+, wanted \w+"):
        run(copy, heads_only=True, seed=1, window="braid-0002")
    assert state(copy)["versions"] == ["braid-0001", "braid-0002"]


@pytest.mark.slow
def test_another_question_gives_the_unfinished_run_up(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def die(stage: str, *_: object) -> None:
        if stage == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(copy, die, heads_only=True, seed=1)
    with pytest.raises(KeyboardInterrupt):
        run(copy, die, heads_only=True, seed=2)
    assert "given up: seed was 1, is 2" in caplog.text
    outcome = run(copy, heads_only=True, seed=2)
    assert outcome.resumed
    runs = Runs(copy / "training").all()[-2:]
    assert [one.state for one in runs] == ["given up", "done"]
    assert not (copy / "training" / runs[0].id / SHARDS).exists()


@pytest.mark.slow
def test_a_version_is_announced_with_the_generation_of_its_space(copy: Path) -> None:
    Registry(copy / "models").promote("braid-0002", generation="g0002")  # as after a flip
    run(copy, heads_only=True, seed=2)
    assert told(copy)[-1]["generation"] == "g0002"
    run(copy, from_scratch=True, seed=5)
    assert told(copy)[-1]["generation"] is None, "a new space has none yet"


def last_run(home: Path) -> Run:
    return Runs(home / "training").all()[-1]


@pytest.mark.slow
def test_an_empty_window_is_not_kept(tmp_path: Path) -> None:
    """A schedule that starts before the first record."""

    def nothing_yet(settings: Settings, folder: Path, progress: Progress | None) -> Window:
        return write_window([], folder, topic="records", offsets={0: (0, 0)})

    settings = Settings(home=tmp_path, refresh={"gates": GATES}, model={"device": "cpu"})
    with pytest.raises(TrainingError, match="no usable sample"):
        retrain(settings, Options(preset="tiny"), read=nothing_yet, tell=tell)
    failed = last_run(tmp_path)
    assert (failed.state, failed.note) == ("failed", "there is no usable sample in the train split")
    assert Runs(tmp_path / "training").window(failed) is None
    assert not run(tmp_path).resumed
    assert state(tmp_path)["versions"] == ["braid-0002"]


@pytest.mark.slow
def test_a_damaged_window_of_an_unfinished_run_is_read_anew(copy: Path) -> None:
    def die(stage: str, *_: object) -> None:
        if stage == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(copy, die, heads_only=True, seed=2)
    shard = next((copy / "training" / last_run(copy).id / SHARDS).iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(WindowError, match="is damaged"):
        run(copy, heads_only=True, seed=2)
    assert last_run(copy).state == "failed"
    assert f"{shard.name} is damaged: sha256" in last_run(copy).note
    assert not run(copy, heads_only=True, seed=2).resumed
    assert state(copy)["runs"][-2:] == [["braid-0003", "failed"], ["braid-0004", "done"]]


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (TrainingError("step 3: loss nan"), "failed"),
        (CheckpointError("no model at 'hub/name': no answer"), "open"),
        (Unreachable("no answer"), "open"),
        (OSError(28, "No space left on device"), "open"),
        (RuntimeError("Connection closed by peer"), "open"),
    ],
)
def test_what_a_run_fails_by_decides_whether_it_is_gone_on_with(
    copy: Path, error: Exception, becomes: str
) -> None:
    def fails(job: Job, run: Run, window: Window) -> Any:
        raise error

    asked = Options(preset="tiny", heads_only=True, seed=2)
    settings = Settings(home=copy, refresh={"gates": GATES}, model={"device": "cpu"})
    job = Job(settings=settings, options=asked, read=read, tell=tell)
    with pytest.raises(type(error)):
        lead(job, fails)
    ended = last_run(copy)
    assert (ended.state, ended.note) == (becomes, str(error) if becomes == "failed" else "")
    assert (copy / "training" / ended.id / SHARDS).exists() == (becomes == "open")
    with pytest.raises(type(error)):
        lead(job, fails)
    assert (last_run(copy).id == ended.id) == (becomes == "open")


@pytest.mark.slow
def test_a_version_that_cannot_serve_ends_its_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlike(*_: object, **__: object) -> None:
        raise CheckpointError("golden batch: it gives something else")

    with monkeypatch.context() as patched:
        patched.setattr("braid.encoders.embedder.load", unlike)
        with pytest.raises(RegistryError, match="braid-0003 cannot serve: golden batch"):
            run(copy, heads_only=True, seed=2, promote=True)
    assert last_run(copy).note.startswith("not promoted: braid-0003 cannot serve: golden batch")
    assert not run(copy, heads_only=True, seed=2, promote=True).resumed
    assert state(copy)["champion"] == "braid-0004"


@pytest.mark.slow
def test_while_a_generation_is_built_the_next_candidate_is_kept(copy: Path) -> None:
    """It can be promoted later, and the run after it learns from what has come since."""
    building = GenerationRecord(
        generation="g0002", model="braid-0002", space="other", state="building"
    )
    GenerationRecords(Registry(copy / "models").log).put(building)
    asked: dict[str, Any] = {"from_scratch": True, "seed": 5, "promote": True, "force": True}
    reason = (
        "g0002 is being built for braid-0002; braid models drop g0002 first, "
        "then braid models promote braid-0003"
    )
    with pytest.raises(RegistryError, match=reason):
        run(copy, **asked)
    assert (last_run(copy).state, last_run(copy).note) == ("done", f"not promoted: {reason}")
    assert told(copy)[-1]["key"] == "version/braid-0003"
    with pytest.raises(RegistryError, match="then braid models promote braid-0004"):
        run(copy, **asked)
    assert state(copy)["runs"][-2:] == [["braid-0003", "done"], ["braid-0004", "done"]]


def judged(home: Path, **gates: float) -> Outcome:
    """A run that asks for its promotion under other gates; it leaves `home`/trainer.prom."""
    settings = Settings(
        home=home, refresh={"gates": {**GATES, **gates}}, metrics={"file": home / "trainer.prom"}
    )
    asked = Options(preset="tiny", heads_only=True, seed=3, promote=True)
    return retrain(settings, asked, read=read, tell=tell)


@pytest.mark.slow
def test_a_refused_version_is_kept_announced_and_never_served(copy: Path) -> None:
    """It must embed in no time at all."""
    outcome = judged(copy, latency=0.0)
    assert not outcome.serves
    assert outcome.failed == "failed: embed ms a record"
    assert told(copy)[-1]["status"] == "refused"
    assert 'ended_seconds{result="refused"}' in (copy / "trainer.prom").read_text()
    registry = Registry(copy / "models")
    assert registry.champion() == registry.history()[0]
    with pytest.raises(RegistryError, match="did not pass its examination: failed: embed ms"):
        registry.promote(outcome.manifest.name, generation="g0001")
    assert registry.promote(outcome.manifest.name, generation="g0001", force=True).seq == 2


@pytest.mark.slow
def test_a_version_that_could_not_be_judged_waits_for_a_person(copy: Path) -> None:
    outcome = judged(copy, min_records=1000)
    assert not outcome.serves
    assert "not enough evidence: 8 judge records, the gates want 1000" in outcome.failed
    assert told(copy)[-1]["status"] == "not enough evidence"
    assert 'ended_seconds{result="not enough evidence"}' in (copy / "trainer.prom").read_text()
    registry, name = Registry(copy / "models"), outcome.manifest.name
    with pytest.raises(RegistryError, match="did not pass its examination: not enough evidence"):
        registry.promote(name, generation="g0001")
    assert registry.admit(name, unproven=True).name == name, "a canary may try it out"
    assert registry.promote(name, generation="g0001", force=True).seq == 2


@pytest.mark.slow
def test_what_the_schedule_has_judged_leaves_no_error_for_more(copy: Path) -> None:
    """The version of `copy` was judged already; two may be in thirty days."""
    (first,) = Registry(copy / "models").log.state().judgements
    assert first.name == "braid-0002"
    assert first.level == pytest.approx(0.05 / 120)
    planned = {"budget": 2 * first.level, "planned": 2}
    outcome = judged(copy, **planned)
    assert outcome.serves
    outcome = judged(copy, **planned)
    assert not outcome.serves
    assert "the error of 0.0833 % in 30 days is spent" in outcome.failed
    assert [one.name for one in Registry(copy / "models").log.state().judgements] == [
        "braid-0002",
        "braid-0003",
        "braid-0004",
    ]


@pytest.mark.slow
def test_a_full_retraining_starts_from_the_champion(copy: Path) -> None:
    warm = run(copy, seed=4)
    assert warm.manifest.parent == "braid-0001"
    cold = run(copy, seed=4, from_scratch=True)
    assert cold.manifest.parent is None
    assert warm.manifest.metrics["losses"][0] < cold.manifest.metrics["losses"][0]


@pytest.mark.slow
def test_a_file_changes_the_preset_and_any_version_may_be_the_start(copy: Path) -> None:
    heads = run(copy, heads_only=True, seed=4, start="braid-0002")
    assert heads.manifest.parent == "braid-0002"
    changes = copy / "changes.toml"
    changes.write_text("epochs = 1\n[model]\ndim = 16\n")
    small = run(copy, config_file=str(changes))
    assert (small.manifest.parent, small.manifest.dim) == (None, 16)
    assert small.manifest.config["epochs"] == 1
    again = repeated(
        Settings(home=copy), Options(window=small.manifest.name), {"start": small.manifest.name}
    )
    child = run(copy, **{name: getattr(again, name) for name in (*SHAPING, "window")})
    assert (child.manifest.parent, child.manifest.dim) == (small.manifest.name, 16)
    for options, message in (
        ({"config_file": str(copy / "no.toml")}, "--config: .*no.toml"),
        (
            {"start": "2", "config_file": str(changes)},
            "braid-0002 has another model configuration: model.dim is 16, there it is 64",
        ),
        ({"start": "2", "from_scratch": True}, "--from 2 and --from-scratch exclude each other"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(copy, **options)


def test_a_gate_that_there_is_not_is_named(copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"gates: .*unheard"):
        retrain(
            Settings(home=copy, refresh={"gates": {"unheard": 1}}),
            Options(preset="tiny", heads_only=True),
            read=read,
            tell=tell,
        )


def test_without_redis_a_file_is_the_lock(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with TrainerLock(settings) as lock:
        lock.set_progress(stage="train", done=3, total=8, loss=0.5)
        lock.renew()
        with pytest.raises(LockError, match=rf"process {os.getpid()} .*train 3/8, loss 0.500"):
            run(tmp_path)
        seen = holder(settings)
        assert seen is not None
        assert seen["pid"] == os.getpid()
    assert holder(settings) is None
    with TrainerLock(settings):
        pass


def test_without_an_answer_from_redis_nobody_trains(tmp_path: Path) -> None:
    with pytest.raises(LockError, match=r"cannot be known: redis://127\.0\.0\.1:1"):
        run(tmp_path, redis_url="redis://127.0.0.1:1/0")
    assert not (tmp_path / "training").exists()
