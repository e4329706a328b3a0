"""Where settings come from, and what a wrong one says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from braid.stream.cli.main import app
from braid.stream.errors import ConfigError
from braid.stream.settings import Settings, load
from braid.stream.settings.sources import NO_SETTINGS, names, variable
from tests.documents import block, pages

KEY = "a-key-of-sixteen-or-more"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("KAFKA_BOOTSTRAP", "REDIS_URL", "BRAID_KAFKA__PARTITIONS", "BRAID_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_flags_win_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "braid.toml").write_text(
        'prefix = "file-"\n[kafka]\npartitions = 3\n[batch]\nwait_s = 0.2\n'
    )
    assert load().kafka.partitions == 3
    monkeypatch.setenv("BRAID_KAFKA__PARTITIONS", "5")
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "kafka:9092")
    settings = load(prefix="flag-", redis={"url": None})
    assert (settings.kafka.partitions, settings.batch.wait_s) == (5, 0.2)
    assert settings.topic("records") == "flag-records"
    assert settings.vectors_topic(settings.generation) == "flag-vectors.g0001"
    assert settings.group(settings.generation) == "flag-braid-embed-g0001"
    assert settings.kafka.bootstrap == "kafka:9092"


def test_another_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Settings(
        kafka={"bootstrap": "k:1", "partitions": 3}, links={"hosts": ["a.org"]}, home=Path("x")
    )
    for name, value in first.environment().items():
        monkeypatch.setenv(name, value)
    assert load() == first


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"kafka": {"partitions": 0}}, r"kafka\.partitions: .*greater than or equal to 1.*got 0"),
        ({"generation": "second"}, "generation: .*got 'second'"),
        ({"worker": {"slot": "a b"}}, r"worker\.slot"),
        ({"batch": {"wait_s": "soon"}}, r"batch\.wait_s"),
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
    (tmp_path / "braid.toml").write_text("[kafka]\npartitons = 3\n")
    with pytest.raises(ConfigError, match=r"kafka\.partitons: .* nearest is kafka\.partitions$"):
        load()
    (tmp_path / "braid.toml").write_text("partitions = [\n")
    with pytest.raises(ConfigError):
        load()
    monkeypatch.setenv("BRAID_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="no file"):
        load()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("http_port = 1\n", r"braid\.toml: http_port: .* nearest is http\.port$"),
        ("[htp]\nport = 1\n", r"braid\.toml: htp: "),
        ("batch = 7\n", r"batch: .*dictionary.*got 7"),
    ],
)
def test_an_unknown_name_in_the_file_is_shown_with_the_nearest(content: str, words: str) -> None:
    Path("braid.toml").write_text(content)
    with pytest.raises(ConfigError, match=words):
        load()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("BRAID_HTTP_PORT", "BRAID_HTTP__PORT"),
        ("BRAID_HTTP__PROT", "BRAID_HTTP__PORT"),
        ("BRAID_JOIN__QUIET", "BRAID_JOIN__QUIET_S"),
        ("BRAID_HOM", "BRAID_HOME"),
    ],
)
def test_an_unknown_variable_is_shown_with_the_nearest_and_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.setenv(name, KEY)
    with pytest.raises(ConfigError, match=rf"^{name}: no such setting; .* {nearest}$"):
        load()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["BRAID_HTTP__PROT=1", "BRAID_HTTP__PORT=x"])
def test_a_wrong_setting_ends_a_process_at_its_start(wrong: str) -> None:
    name, _, value = wrong.partition("=")
    done = subprocess.run(
        [sys.executable, "-m", "braid", "index"],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == os.EX_CONFIG
    assert name in done.stderr or "http.port" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_variables_of_the_documents_are_settings() -> None:
    known = {variable(name) for name in names(Settings)} | NO_SETTINGS
    root = Path(__file__).parents[2]
    others = ("Dockerfile", "docker-compose.yml", "benchmarks/RESULTS.md")
    for file in [*pages(), *(root / name for name in others)]:
        unknown = set(re.findall(r"\bBRAID_\w+", file.read_text())) - known
        assert not unknown, file


def test_variables_that_are_no_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_SETTINGS - {"BRAID_CONFIG"}:
        monkeypatch.setenv(name, "after-apply:exit")
    monkeypatch.setenv("BRAID_PORT", "tcp://10.0.0.1:8077")  # by Kubernetes, for a service braid
    monkeypatch.setenv("BRAID_INDEX_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("BRAID_INDEX_PORT_8077_TCP_ADDR", "10.0.0.1")
    assert load() == Settings()
    monkeypatch.setenv("BRAID_CACHE__TTL_S", "5")
    assert load().cache.ttl_s == 5, "though BRAID_CACHE names a folder"


def test_each_setting_is_shown_with_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("braid.toml").write_text("[kafka]\npartitions = 3\nreplication = 2\n")
    monkeypatch.setenv("BRAID_KAFKA__PARTITIONS", "5")
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "kafka:9092")
    monkeypatch.setenv("REDIS_URL", f"redis://user:{KEY}@host/0")
    monkeypatch.setenv("BRAID_MILVUS__TOKEN", KEY)
    monkeypatch.setenv("BRAID_HTTP__API_KEYS", json.dumps([KEY]))
    done = CliRunner().invoke(app, ["--prefix", "p-", "config", "--json"])
    assert KEY not in done.output
    shown = json.loads(done.output)
    assert {name: one["from"] for name, one in shown.items() if one["from"] != "default"} == {
        "prefix": "flag",
        "kafka.bootstrap": "KAFKA_BOOTSTRAP",
        "kafka.partitions": "BRAID_KAFKA__PARTITIONS",
        "kafka.replication": "braid.toml",
        "redis.url": "REDIS_URL",
        "milvus.token": "BRAID_MILVUS__TOKEN",
        "http.api_keys": "BRAID_HTTP__API_KEYS",
    }
    assert shown["kafka.partitions"]["value"] == 5
    assert shown["redis.url"]["value"] == "redis://***@host/0"
    assert shown["http.port"] == {"value": 8077, "from": "default"}
    lines = CliRunner().invoke(app, ["config"]).output.splitlines()
    assert len(lines) == len(shown)
    assert ["kafka.replication", "2", "braid.toml"] in [line.split() for line in lines]


def test_a_list_in_the_environment_that_does_not_parse_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BRAID_LINKS__HOSTS", "a.org,b.org")
    with pytest.raises(ConfigError, match=r"links\.hosts"):
        load()


def test_keys_come_from_the_environment_and_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load().keys() is None
    monkeypatch.setenv("BRAID_HTTP__API_KEYS", json.dumps([KEY]))
    (tmp_path / "keys").write_text(f"# for the page\n{KEY}-2\n")
    settings = load(http={"api_keys_file": tmp_path / "keys"})
    keys = settings.keys()
    assert keys is not None
    assert len(keys) == 2
    assert keys.match(KEY.encode())
    assert keys.match(f"{KEY}-2".encode())
    assert keys.match(f"{KEY}-3".encode()) is None
    assert settings.client_key() == KEY
    assert settings.client_key(own=False) is None  # another's service is not shown ours
    other = load(http={"api_key": "sent-to-the-service-0"})
    assert other.client_key() == other.client_key(own=False) == "sent-to-the-service-0"
    assert load(http={"api_keys": ["sha256:" + "0" * 64]}).client_key() is None


def test_another_process_gets_the_keys_and_nothing_shows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Settings(http={"api_keys": [KEY], "api_key": KEY}, milvus={"token": KEY})
    for name, value in first.environment().items():
        monkeypatch.setenv(name, value)
    assert load() == first
    assert load().keys()
    assert load().milvus.token.get_secret_value() == KEY
    assert KEY not in repr(first)
    assert KEY not in str(first.model_dump())


@pytest.mark.parametrize(
    ("flags", "content", "words"),
    [
        ({"api_keys": "too-short"}, None, r"http\.api_keys: .*must be JSON"),
        ({"api_keys": ["too-short"]}, None, r"http\.api_keys: key 1: has 9 characters"),
        ({"api_keys": [KEY, "sha256:zz"]}, None, r"http\.api_keys: key 2: .*hexadecimal"),
        ({"api_keys_file": "keys"}, None, r"http\.api_keys_file: keys: No such file"),
        ({"api_keys_file": "keys"}, b"\n# nobody\n", r"http\.api_keys: no key"),
        ({"api_keys_file": "keys"}, b"\xff\xfe", r"http\.api_keys_file: keys: not a text file"),
        ({"api_keys": 7}, None, r"http\.api_keys: .*list"),
        ({"api_keys": [7_000_000_000_000_007]}, None, r"http\.api_keys\.0: "),
        ({"rate_per_s": 0}, None, r"http\.rate_per_s: .*got 0"),
        ({"searches": 0}, None, r"http\.searches: .*got 0"),
    ],
)
def test_keys_and_rates_that_are_wrong_stop_the_start_and_are_not_shown(
    flags: dict[str, object], content: bytes | None, words: str
) -> None:
    if content is not None:
        Path("keys").write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load(http=flags).keys()
    for secret in ("too-short", "sha256:zz", "7000000000000007"):
        assert secret not in str(caught.value)


def test_the_limits_of_the_service() -> None:
    limits = load(
        http={"rate_per_s": 2.5, "burst": 7, "queue_size": 3, "body_bytes": 4096}
    ).limits()
    assert (limits.rate_per_s, limits.burst) == (2.5, 7)
    assert (limits.queue_size, limits.body_bytes) == (3, 4096)
    assert load().limits().rate_per_s is None


def test_the_settings_that_the_pages_show_are_taken() -> None:
    Path("braid.toml").write_text(block("how-to/deploy.md", "toml", "[http]"))
    Path("keys.txt").write_text(KEY)
    settings = load()
    assert settings.keys()
    limits = settings.limits()
    assert (limits.rate_per_s, limits.burst, limits.queue_size) == (20.0, 50, 64)
    assert (limits.searches, limits.body_bytes) == (8, 32 * 1024 * 1024)
