"""The trainer's lock in a real Valkey, what starts trainers, and what they show."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import faust
import httpx
import pytest
import redis
import yaml
from typer.testing import CliRunner

from braid.index.media_cache import Media, MediaCache
from braid.index.payloads import Payload, Payloads
from braid.stream.cli.main import app
from braid.stream.cli.retrain import seconds_of, without_every
from braid.stream.errors import ConfigError, LockError, Unreachable
from braid.stream.local.child import Child, free_port
from braid.stream.registry.versions import Registry
from braid.stream.settings import Settings
from braid.stream.trainer import schedule
from braid.stream.trainer.lock import TrainerLock, described, first_in, holder
from braid.stream.trainer.metrics import TrainerMetrics, progress_to, served
from braid.stream.trainer.schedule import FirstVersion, Trigger, add_schedule, every
from tests.services import Valkey
from tests.stream.harness import Deployment, wait_for
from tests.stream.trainers import KEY
from tests.stream.worker.test_hot_swap import labelled

ROOT = Path(__file__).parents[3]


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return Settings(redis={"url": valkey}, home=tmp_path)


@pytest.mark.redis
def test_the_lock_tells_who_trains_and_fades_with_its_holder(settings: Settings) -> None:
    assert holder(settings) is None
    with TrainerLock(settings, lifetime_s=0.9) as lock:
        lock.set_progress(run="r", stage="train", done=2, total=8, loss=1.25)
        lock.renew()
        seen = holder(settings)
        assert seen is not None
        assert described(seen).startswith(f"process {os.getpid()} on ")
        assert described(seen).endswith("UTC, train 2/8, loss 1.250")
        with pytest.raises(LockError, match=f"another trainer runs: process {os.getpid()} "):
            TrainerLock(settings).__enter__()
        first = pttl(settings)
        assert 0 < first <= 900
        wait_for("it is renewed by itself", lambda: pttl(settings) > 700, timeout=30, every=0.01)
    assert holder(settings) is None


@pytest.mark.redis
def test_a_lost_lock_is_noticed_and_left_to_its_new_holder(settings: Settings) -> None:
    with TrainerLock(settings) as lock, redis.Redis.from_url(settings.redis.url or "") as client:
        client.flushdb()
        assert lock.renew(), "nobody took it meanwhile: it is ours again"
        client.flushdb()
        with TrainerLock(settings) as other:
            assert not lock.renew()
            assert not lock.held
            assert other.renew()
            lock._lock.release(lock._state["token"])
            assert holder(settings) is not None, "only its holder may remove it"


def pttl(settings: Settings) -> int:
    """How many milliseconds it has yet; its end stands in its value."""
    with redis.Redis.from_url(settings.redis.url or "") as client:
        ends, _, _ = (client.get(KEY) or b"0 ").partition(b" ")
        seconds, micros = client.time()
        return int(ends) - 1000 * int(seconds) - int(micros) // 1000


@pytest.mark.redis
def test_the_command_line_says_who_holds_it_and_fails(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    with TrainerLock(settings):
        done = CliRunner().invoke(app, ["retrain", "--preset", "tiny"])
    assert done.exit_code == 1
    assert isinstance(done.exception, LockError)
    assert f"process {os.getpid()}" in str(done.exception)


@pytest.mark.redis
def test_the_first_to_ask_is_the_only_one(settings: Settings) -> None:
    without = settings.replace(redis={"url": None})
    for one in (settings, without):
        assert first_in(one, "x", 60)
        assert not first_in(one, "x", 60)
        assert first_in(one, "y", 60)
        assert first_in(one, "z", 0.001)
        time.sleep(0.01)
        assert first_in(one, "z", 0.001)


@pytest.mark.redis
def test_a_full_redis_evicts_what_is_shown_and_no_lock(own_valkey: Valkey, tmp_path: Path) -> None:
    """Under the policy of the compose file, with as much memory as a few hundred texts take."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    command = compose["services"]["redis"]["command"][-1].split()
    policy = command[command.index("--maxmemory-policy") + 1]
    settings = Settings(redis={"url": own_valkey.address}, home=tmp_path)
    payloads = Payloads(own_valkey.address)
    media_cache = MediaCache(payloads)
    with redis.Redis.from_url(own_valkey.address) as client, TrainerLock(settings, lifetime_s=600):
        assert first_in(settings, "retrain", 3600)
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
        for number in range(100):
            shown = {f"r{number}-{one}": Payload(text="x" * 2000, uri={}) for one in range(100)}
            assert payloads.put_many(shown)
            media = {("thumb", f"r{number}"): Media(data=b"x" * 20_000, type="image/webp")}
            assert media_cache.put_many(media)  # type: ignore[arg-type]
        assert client.info("stats")["evicted_keys"] > 5_000
        assert payloads.get_many(["r99-99"])
        assert holder(settings) is not None
        with pytest.raises(LockError, match="another trainer runs"):
            TrainerLock(settings).__enter__()
        assert not first_in(settings, "retrain", 3600)


def script(tmp_path: Path, code: str) -> Child:
    log = tmp_path / "retrain.log"
    return Child("retrain", [sys.executable, "-c", code], log=log)


def test_a_schedule_goes_on_after_a_failure_and_does_not_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Time is made: each run takes as long as its number says."""
    now, starts = [0.0], list[float]()
    messages: list[str] = []
    lengths = iter([1.0, 25.0, 1.0])

    def make() -> Child:
        starts.append(now[0])
        now[0] += next(lengths)
        status = 3 if len(starts) == 1 else 0
        return script(tmp_path, f"print('run {len(starts)}'); raise SystemExit({status})")

    def sleep(seconds: float) -> None:
        if seconds == schedule.POLL_S:
            time.sleep(0.01)
        else:
            now[0] += seconds

    every(10.0, make, say=messages.append, clock=lambda: now[0], sleep=sleep, runs=3)
    assert starts == [0.0, 10.0, 35.0], "from start to start; a long one is followed at once"
    assert messages == ["this run made no version (status 3)"]
    shown = capsys.readouterr().err
    assert [shown.count(f"run {number}\n") for number in (1, 2, 3)] == [1, 1, 1]


class First(FirstVersion):
    """Records come after 25 s, a champion with the third run; the broker is away at first."""

    def __init__(self, settings: Settings, now: list[float], starts: list[float]) -> None:
        super().__init__(settings)
        self.now, self.starts = now, starts

    def serves(self) -> bool:
        return len(self.starts) >= 3

    def missing(self) -> str | None:
        if self.now[0] == 0:
            raise Unreachable("no answer")
        return None if self.serves() or self.now[0] > 25 else "few records"


def test_while_there_is_no_model_the_schedule_tries_again_soon(tmp_path: Path) -> None:
    now, starts = [0.0], list[float]()
    messages: list[str] = []
    first = First(Settings(home=tmp_path), now, starts)

    def make() -> Child:
        starts.append(now[0])
        return script(tmp_path, f"raise SystemExit({len(starts) < 3:d})")

    def sleep(seconds: float) -> None:
        if seconds == schedule.POLL_S:
            time.sleep(0.01)
        else:
            now[0] += seconds

    every(21_600, make, say=messages.append, first=first, clock=lambda: now[0], sleep=sleep, runs=4)
    assert starts == [30.0, 90.0, 210.0, 210.0 + 21_600]
    no_version = "this run made no version (status 1)"
    assert messages == [
        "the first training waits: no answer",
        no_version,
        "there is no model yet: tried again in 60 s",
        no_version,
        "there is no model yet: tried again in 120 s",
    ]


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_model_comes_soon_after_the_first_records(kafka: str, tmp_path: Path) -> None:
    """A schedule that is started with new topics, as by the compose file."""
    with Deployment(kafka, tmp_path, refresh={"retrain_first": 40}) as deployed:
        command = ["-m", "braid", "retrain", "--every", "6h", "--preset", "tiny"]
        trainer = deployed.child("trainer", command)
        waits = (
            "records has 0, and the first training begins with 40 (BRAID_REFRESH__RETRAIN_FIRST)"
        )
        wait_for("it says what it waits for", lambda: waits in trainer.log.read_text(), timeout=60)
        worker = deployed.worker("one", model=None)
        deployed.produce(labelled(60))
        registry = Registry(deployed.settings.models_dir)
        wait_for("a first model", lambda: registry.champion() is not None, timeout=180)
        wait_for("it is served", lambda: deployed.lag() == 0, timeout=60)
        assert trainer.log.read_text().count(waits) == 1
        assert "no usable sample" not in trainer.log.read_text()
        assert "no champion in the registry yet" in worker.log.read_text()


def test_sigterm_ends_the_schedule_and_its_trainer(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from braid.stream.local.child import Child; "
        "from braid.stream.trainer.schedule import every\n"
        "make = lambda: Child('t', [sys.executable, '-c', 'import os, time; "
        "print(os.getpid(), flush=True); time.sleep(600)'], log=Path(sys.argv[1]))\n"
        "every(60, make, say=print)"
    )
    log = tmp_path / "trainer.log"
    scheduler = Child(
        "scheduler", [sys.executable, "-c", code, str(log)], log=tmp_path / "scheduler.log"
    ).start()
    try:
        wait_for("a trainer", lambda: log.is_file() and log.read_text() != "", timeout=60)
        scheduler.send(signal.SIGTERM)
        scheduler.wait(30)
    finally:
        scheduler.stop(0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def test_a_trigger_starts_one_at_most_so_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        home=tmp_path, refresh={"retrain_options": ["--preset", "tiny"]}, metrics={"port": 1}
    )
    code = "import os, sys; print(os.environ['BRAID_METRICS__PORT'], *sys.argv[1:])"
    monkeypatch.setattr(schedule, "command", lambda rest: [sys.executable, "-c", code, *rest])
    trigger = Trigger(settings)
    assert trigger("drift of label").startswith("started (drift of label), process ")
    child = trigger._child
    assert child is not None
    child.wait(60)
    assert child.log.read_text().split() == [
        "0",
        "--preset",
        "tiny",
        "--reason",
        "drift",
        "of",
        "label",
    ]
    assert "one was started within the last 3600 s" in trigger("drift again")
    with TrainerLock(settings):
        assert f"another trainer runs: process {os.getpid()}" in trigger("x", least_s=0)
    trigger.stop()


def test_a_wrong_crontab_is_named(tmp_path: Path) -> None:
    app = faust.App("t", broker="aiokafka://127.0.0.1:1", datadir=str(tmp_path))
    add_schedule(app, Settings(home=tmp_path))
    assert app._extra_services == []
    with pytest.raises(ConfigError, match=r"refresh.retrain_cron: '0 \*/6 x'"):
        add_schedule(app, Settings(home=tmp_path, refresh={"retrain_cron": "0 */6 x"}))


@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_the_crontab_of_two_workers_starts_one_trainer(kafka: str, tmp_path: Path) -> None:
    """It finds no records, which is enough: it was started, once. (The sixth field: seconds.)"""
    with Deployment(
        kafka,
        tmp_path,
        refresh={"retrain_cron": "* * * * * */2", "retrain_options": ["--preset", "tiny"]},
    ) as deployed:
        workers = [deployed.worker(name) for name in ("one", "two")]
        log = tmp_path / "logs" / "retrain.log"
        wait_for(
            "the trainer has run",
            lambda: log.is_file() and "no usable sample in the train split" in log.read_text(),
            timeout=150,
        )
        wait_for(
            "the other worker's crontab fires too",
            lambda: all("retraining " in worker.log.read_text() for worker in workers),
            timeout=60,
        )
        logs = "".join(worker.log.read_text() for worker in workers)
        assert logs.count("retraining started (crontab)") == 1
        assert log.read_text().count("no usable sample") == 1


def test_live_metrics_of_a_trainer(tmp_path: Path) -> None:
    port = free_port()
    settings = Settings(home=tmp_path, metrics={"port": port})
    metrics, seen = TrainerMetrics(), []
    with TrainerLock(settings) as lock, served(metrics, settings):
        metrics.run("run-1", "braid-0002")
        follow = progress_to(lock, metrics, lambda *stage: seen.append(stage))
        follow("train", 3, 8, {"loss": 0.25, "held out": 0.5})
        shown = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        with pytest.raises(ConfigError, match=f"metrics.port: {port}"), served(metrics, settings):
            pass
        lock.renew()
        state = holder(settings)
    for line in (
        'braid_trainer_stage{stage="train"} 1.0',
        "braid_trainer_done 3.0",
        "braid_trainer_total 8.0",
        'braid_trainer_figure{name="held out"} 0.5',
        'braid_trainer_info{run="run-1",version="braid-0002"} 1.0',
    ):
        assert line in shown.splitlines()
    assert seen == [("train", 3, 8, {"loss": 0.25, "held out": 0.5})]
    assert state is not None
    assert (state["stage"], state["done"], state["total"], state["loss"]) == ("train", 3, 8, 0.25)


def test_the_metrics_file_is_left_when_the_trainer_is_gone(tmp_path: Path) -> None:
    """It has what the run came to, and is refused before anybody trains for hours."""
    file = tmp_path / "trainer.prom"
    settings = Settings(home=tmp_path, metrics={"file": file})
    before = "what the run before came to\n"
    file.write_text(before)
    metrics = TrainerMetrics()
    with served(metrics, settings):
        assert file.read_text() == before  # until this one came to something
        metrics.at("train", 3, 8, {"loss": 0.25})
        metrics.ended("candidate")
    assert 'braid_trainer_figure{name="loss"} 0.25' in file.read_text()
    assert 'braid_trainer_ended_seconds{result="candidate"}' in file.read_text()
    assert "braid_trainer_stage{" not in file.read_text()
    with pytest.raises(RuntimeError), served(metrics, settings):
        raise RuntimeError
    assert 'braid_trainer_ended_seconds{result="failed"}' in file.read_text()
    assert "candidate" not in file.read_text()
    elsewhere = settings.replace(metrics={"file": tmp_path / "nowhere" / "x.prom"})
    with pytest.raises(ConfigError, match=r"metrics.file: .*nowhere"), served(metrics, elsewhere):
        pytest.fail("it began")


def test_the_schedules_own_flag_is_not_passed_on() -> None:
    line = ["--home", "h", "retrain", "--every", "6h", "--heads-only", "--every=2h"]
    assert without_every(line) == ["--home", "h", "retrain", "--heads-only"]
    assert [seconds_of(given) for given in ("90s", "15m", "6h", "1d")] == [90, 900, 21600, 86400]
    for wrong in ("6", "h", "0h", "-1h", "6 h"):
        with pytest.raises(ConfigError, match="--every"):
            seconds_of(wrong)
