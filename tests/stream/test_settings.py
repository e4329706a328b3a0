"""Where settings come from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream.errors import ConfigError
from stream.settings import Settings, load


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("KAFKA_BOOTSTRAP", "REDIS_URL", "BRAID_PARTITIONS", "BRAID_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_flags_win_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "braid.toml").write_text('partitions = 3\nbatch_wait_s = 0.2\nprefix = "file-"\n')
    assert load().partitions == 3
    monkeypatch.setenv("BRAID_PARTITIONS", "5")
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "kafka:9092")
    settings = load(prefix="flag-", redis_url=None)
    assert (settings.partitions, settings.batch_wait_s) == (5, 0.2)
    assert settings.topic("records") == "flag-records"
    assert settings.topic("vectors") == "flag-vectors.g0001"
    assert settings.group == "flag-braid-embed-g0001"
    assert settings.kafka_bootstrap == "kafka:9092"


def test_another_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Settings(kafka_bootstrap="k:1", link_hosts=["a.org"], home=Path("x"), embedded=True)
    for name, value in first.environment().items():
        monkeypatch.setenv(name, value)
    assert load() == first


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"partitions": 0}, "partitions: .*greater than or equal to 1.*got 0"),
        ({"generation": "second"}, "generation: .*got 'second'"),
        ({"slot": "a b"}, "slot"),
        ({"batch_wait_s": "soon"}, "batch_wait_s"),
    ],
)
def test_a_wrong_setting_is_named_with_its_limit_and_value(
    flags: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load(**flags)


def test_a_file_that_is_wrong_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "braid.toml").write_text("partitons = 3\n")
    with pytest.raises(ConfigError, match="unknown settings partitons"):
        load()
    (tmp_path / "braid.toml").write_text("partitions = [\n")
    with pytest.raises(ConfigError):
        load()
    monkeypatch.setenv("BRAID_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="no file"):
        load()


def test_a_list_in_the_environment_that_does_not_parse_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BRAID_LINK_HOSTS", "a.org,b.org")
    with pytest.raises(ConfigError, match="link_hosts"):
        load()
