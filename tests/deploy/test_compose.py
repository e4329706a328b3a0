"""The compose files are valid, and what they start is confined."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from braid.stream.local.child import Child, free_port, port_answers
from braid.stream.local.embedded import valkey_command
from braid.stream.settings import load
from braid.stream.worker.ingest.app import converters_of
from tests.command_lines import check_command
from tests.stream.harness import wait_for

ROOT = Path(__file__).parent.parent.parent
COMPOSE = ("docker-compose.yml", "docker-compose.gpu.yml")
WRITABLE = {"kafka"}  # docker-compose.yml says why


def loaded(name: str) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(content, dict)
    return content


def config(*names: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What Docker Compose makes of the files; it needs no engine for this."""
    program = Path(sys.executable).parent / "docker-compose"
    files = [part for name in names for part in ("-f", name)]
    return subprocess.run(
        [program, *files, "--env-file", "/dev/null", "--profile", "*", "config"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("names", [COMPOSE[:1], COMPOSE])
def test_compose_accepts_the_files(names: tuple[str, ...]) -> None:
    done = config(*names, REDIS_PASSWORD="secret")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == set(loaded("docker-compose.yml")["services"])
    assert services["embed"]["environment"]["REDIS_URL"] == "redis://:secret@redis:6379/0"


def test_compose_names_the_password_that_is_missing() -> None:
    done = config("docker-compose.yml")
    assert done.returncode != 0
    assert "set REDIS_PASSWORD in .env" in done.stderr


def test_services_run_commands_that_exist() -> None:
    services = loaded("docker-compose.yml")["services"]
    ours = {name: service for name, service in services.items() if "build" in service}
    assert set(ours) == {"embed", "index", "ingest", "trainer"}
    for service in ours.values():
        check_command([str(part) for part in service["command"]])
        test = service["healthcheck"]["test"]
        if test[1] == "braid":
            check_command(test[2:])


def test_compose_is_whole() -> None:
    whole = loaded("docker-compose.yml")
    services = whole["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), f"{name} would listen on every address"
        if "profiles" not in service:
            assert service["healthcheck"]["test"], f"{name} has no health check"
        assert set(service.get("depends_on", [])) <= set(services)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in whole["volumes"] or (ROOT / source).exists(), f"{name}: {source}"
    assert set(loaded("docker-compose.gpu.yml")["services"]) <= set(services)


def test_no_service_is_root_or_writes_outside_its_volumes() -> None:
    for name, service in loaded("docker-compose.yml")["services"].items():
        assert service["user"].split(":")[0] not in ("", "0", "root"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only", False) == (name not in WRITABLE), name
        assert not {"privileged", "cap_add", "pid", "network_mode"} & set(service), name


def test_ingest_reads_sources_that_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    service = loaded("docker-compose.yml")["services"]["ingest"]
    path = Path(service["environment"]["BRAID_CONFIG"])
    (mounted,) = [v for v in service["volumes"] if v.split(":")[1] == str(path.parent)]
    monkeypatch.setenv("BRAID_CONFIG", str(ROOT / mounted.split(":")[0] / path.name))
    assert [converter.source.topic for converter in converters_of(load(), ())] == ["shop.products"]


def test_images_may_be_named_by_digest() -> None:
    """Each variable that `.env` may set becomes the image of its services."""
    services = loaded("docker-compose.yml")["services"]
    names = {str(each["image"]).partition(":")[0].removeprefix("${") for each in services.values()}
    digests = {name: f"example/{name.lower()}@sha256:{64 * '0'}" for name in sorted(names)}
    done = config("docker-compose.yml", REDIS_PASSWORD="secret", **digests)
    assert done.returncode == 0, done.stderr
    images = {each["image"] for each in yaml.safe_load(done.stdout)["services"].values()}
    assert images == set(digests.values())


def test_images_have_exact_versions() -> None:
    done = config("docker-compose.yml", REDIS_PASSWORD="secret")
    images = [each["image"] for each in yaml.safe_load(done.stdout)["services"].values()]
    images += re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    others = [image for image in images if not image.startswith("braid:")]
    assert len(others) >= 5
    assert [image for image in others if not re.search(r":v?\d+\.\d+\.\d+(-[a-z]+)*$", image)] == []


def test_only_the_gpu_override_asks_for_a_gpu() -> None:
    assert "nvidia" not in (ROOT / "docker-compose.yml").read_text()
    embed = loaded("docker-compose.gpu.yml")["services"]["embed"]
    (device,) = embed["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "gpu" in embed["build"]["args"]["EXTRAS"].split()


def test_the_image_installs_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    default = re.search(r'^ARG EXTRAS="([^"]+)"', (ROOT / "Dockerfile").read_text(), re.M)
    made = re.search(r"^EXTRAS \?= (\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert default is not None
    assert made is not None
    assert set(default[1].split()) <= set(extras)
    assert set(made[1].split(",")) <= set(extras)
    for copied in re.findall(r"^COPY (\S+) \S+$", (ROOT / "Dockerfile").read_text(), re.M):
        assert (ROOT / copied).exists()


@pytest.mark.parametrize("names", [COMPOSE[:1], COMPOSE])
def test_more_extras_reach_every_image(names: tuple[str, ...]) -> None:
    done = config(*names, REDIS_PASSWORD="secret", MORE_EXTRAS="mlflow video")
    built = [one for one in yaml.safe_load(done.stdout)["services"].values() if "build" in one]
    assert [one["build"]["args"]["MORE_EXTRAS"] for one in built] == ["mlflow video"] * 4
    (line,) = re.findall(r"^RUN .*pyproject.toml$", (ROOT / "Dockerfile").read_text(), re.M)
    (names_of,) = re.findall(r"\$\(printf .*?\)", line)
    shell = ["sh", "-c", f"echo {names_of}"]
    environment = {"EXTRAS": "cpu demo", "MORE_EXTRAS": ""}
    for more, flags in (("", ""), ("mlflow video", " --extra mlflow --extra video")):
        environment["MORE_EXTRAS"] = more
        printed = subprocess.run(
            shell, env={**os.environ, **environment}, capture_output=True, text=True, check=True
        )
        assert printed.stdout.strip() == f"--extra cpu --extra demo{flags}"


def test_the_extras_of_the_page_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    (table,) = re.findall(r"^\| extra \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.M)
    names = [
        name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    assert len(names) > 8
    assert set(names) <= set(extras["optional-dependencies"])


@pytest.mark.redis
def test_redis_asks_for_its_password_and_does_not_show_it(tmp_path: Path) -> None:
    """The command of the compose file, with Valkey in place of Redis."""
    (shell, flag, script) = loaded("docker-compose.yml")["services"]["redis"]["command"]
    port = free_port()
    program = shlex.quote(valkey_command(port, tmp_path)[0])
    line = script.replace("$$", "$").replace("redis-server -", f"{program} - --port {port}")
    child = Child(
        "redis", [shell, flag, line], log=tmp_path / "log", env={"REDISCLI_AUTH": "secret"}
    )
    child.start()
    try:
        wait_for("redis", lambda: port_answers(port), timeout=10)
        with (
            redis.Redis(port=port) as without,
            pytest.raises(redis.AuthenticationError, match="authenticated"),
        ):
            without.ping()
        with redis.Redis(port=port, password="secret") as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}
            assert client.config_get("save") == {"save": ""}
        shown = Path(f"/proc/{child.pid}/cmdline").read_bytes()
        assert b"valkey" in shown, "signals must reach the server, not a shell"
        assert b"secret" not in shown
    finally:
        child.stop()
