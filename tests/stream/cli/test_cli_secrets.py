"""What commands say shows no password, and which process holds an index home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from braid.index.home_lock import home_lock
from braid.stream.errors import ConfigError
from braid.stream.local.child import free_port
from braid.stream.settings import Settings, load

SECRET = "s3cret"


def run(*command: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "braid", "--home", str(home), *command],
        env={**os.environ, "BRAID_KAFKA__BROKER_TIMEOUT_S": "1", **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_the_doctor_shows_no_password(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    env = {"REDIS_URL": f"redis://user:{SECRET}@{nowhere}/0", "KAFKA_BOOTSTRAP": nowhere}
    ended = run("doctor", "--json", home=tmp_path, **env)
    assert ended.returncode == 1
    says = json.loads(ended.stdout)["redis"]["says"]
    assert says.startswith(f"redis://***@{nowhere}/0 does not answer: Error 111 connecting")
    assert SECRET not in ended.stdout + ended.stderr


def test_settings_and_their_errors_show_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"redis://user:{SECRET}@host/0"
    assert SECRET not in repr(Settings(redis={"url": url}, milvus={"uri": f"http://u:{SECRET}@m"}))
    with pytest.raises(ConfigError) as caught:
        load(kafka={"partitions": url})
    assert SECRET not in str(caught.value)
    assert "***@host" in str(caught.value)


@pytest.mark.slow
def test_a_second_index_node_on_one_home_ends_and_names_the_first(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    with home_lock(tmp_path / "index"):
        ended = run("index", "--model", "null:16", home=tmp_path, KAFKA_BOOTSTRAP=nowhere)
        assert ended.returncode == 1
        assert f"process id {os.getpid()}" in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_name_that_is_no_host_ends_the_node_at_start(tmp_path: Path) -> None:
    ended = run("index", "--model", "null:16", home=tmp_path, BRAID_HTTP__HOSTS='["http://a"]')
    assert ended.returncode == os.EX_CONFIG
    assert "http.hosts: must be a name without scheme and port" in ended.stderr
