"""A champion announced from another registry is named: two homes on one broker."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from braid.encoders.errors import TrainingError
from braid.stream.cli.main import app
from braid.stream.registry.announcements import (
    CHAMPION_KEY,
    _OtherRegistries,
    announce,
    announce_champion,
    first_champion,
    follow_news,
    read_all,
    warn_of_other_registries,
)
from braid.stream.registry.versions import Champion, Registry
from braid.stream.settings import Settings
from tests.stream.harness import Deployment

pytestmark = pytest.mark.kafka


def promoted_elsewhere(deployment: Deployment, made: Registry, home: Path) -> Settings:
    """Settings of a process with another home, after a promotion in this one."""
    champion = made.promote("tiny-0001", generation="g0001")
    announce_champion(deployment.settings, champion, made)
    return deployment.settings.replace(home=home)


async def logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    for _ in range(3600):
        if words in caplog.text:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{words!r} is not in the log:\n{caplog.text}")


def test_who_waits_for_the_first_model_learns_that_it_is_elsewhere(
    deployment: Deployment,
    three_versions: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = promoted_elsewhere(deployment, three_versions, tmp_path / "mine")
    words = (
        f"tiny-0001 is announced from the registry at {three_versions.root}, this process reads "
        f"{own.models_dir}: give both the same home (--home or BRAID_HOME)"
    )

    async def main() -> Champion:
        waiting = asyncio.create_task(first_champion(own, Registry(own.models_dir, base="tiny")))
        await logged(caplog, words)
        shutil.copytree(three_versions.root, own.models_dir)
        return await asyncio.wait_for(waiting, 60)

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(main()).name == "tiny-0001"


def following(settings: Settings, until: Callable[[], Any]) -> None:
    async def main() -> None:
        async def look() -> None: ...

        task = asyncio.create_task(follow_news(settings, look))
        try:
            await until()
        finally:
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(main())


def test_a_running_process_is_warned_once(
    deployment: Deployment,
    three_versions: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = promoted_elsewhere(deployment, three_versions, tmp_path / "mine")
    caplog.set_level(logging.WARNING)

    async def another() -> None:
        await logged(caplog, "the champion tiny-0001 is announced from the registry")
        for name, root in (("tiny-0002", "here"), ("tiny-0002", "third")):
            registry = three_versions
            if root == "third":
                shutil.copytree(three_versions.root, tmp_path / "third")
                registry = Registry(tmp_path / "third", base="tiny")
            champion = registry.promote(name, generation="g0001")
            announce_champion(deployment.settings, champion, registry)
        await logged(caplog, f"from the registry at {tmp_path / 'third'}")

    following(own, another)
    assert caplog.text.count(f"from the registry at {three_versions.root}") == 1


def test_a_training_in_another_folder_is_warned(
    deployment: Deployment,
    three_versions: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = promoted_elsewhere(deployment, three_versions, tmp_path / "mine")
    caplog.set_level(logging.INFO)
    done = CliRunner(env=own.environment()).invoke(app, ["retrain", "--preset", "tiny"])
    assert isinstance(done.exception, TrainingError), "there are no records"
    assert (
        f"home {own.home}, broker {own.kafka.bootstrap}, registry {own.models_dir}" in caplog.text
    )
    words = f"announced from the registry at {three_versions.root}, this process reads"
    assert words in caplog.text
    caplog.clear()
    warn_of_other_registries(own.replace(home=three_versions.root.parent))
    warn_of_other_registries(own.replace(prefix="none-", kafka={"bootstrap": "127.0.0.1:1"}))
    assert caplog.text == ""


def test_only_the_last_of_the_champions_before_is_judged(
    deployment: Deployment,
    three_versions: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = promoted_elsewhere(deployment, three_versions, tmp_path / "mine")
    registry = Registry(own.models_dir, base="tiny")
    shutil.copytree(three_versions.root / "versions", own.models_dir / "versions")
    shutil.rmtree(own.models_dir / "versions" / "tiny-0001")
    announce_champion(own, registry.promote("tiny-0002", generation="g0001"), registry)
    caplog.set_level(logging.WARNING)
    shutil.copytree(three_versions.root / "versions", tmp_path / "third" / "versions")
    third = Registry(tmp_path / "third", base="tiny")

    async def later() -> None:
        await asyncio.sleep(1)  # most likely it has read what was there before
        announce_champion(own, third.promote("tiny-0001", generation="g0001"), third)
        await logged(caplog, f"from the registry at {third.root}")

    following(own, later)
    assert str(three_versions.root) not in caplog.text


@pytest.mark.parametrize(
    "odd",
    [
        {"uri": "file://[/models/versions/x", "name": "x"},
        {"uri": "file:///models%00/versions/x", "name": "x"},
        {"uri": "file:///models/versions/x", "name": "a\0b"},
    ],
)
def test_an_odd_fact_is_named_and_does_not_end_the_news(
    deployment: Deployment,
    three_versions: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    odd: dict[str, str],
) -> None:
    own = deployment.settings.replace(home=tmp_path / "mine")
    announce(own, CHAMPION_KEY, odd)
    caplog.set_level(logging.WARNING)

    async def good() -> None:
        await logged(caplog, f"the announced champion {odd['name']!r} is not readable")
        promoted_elsewhere(deployment, three_versions, tmp_path / "mine")
        await logged(caplog, "is announced from the registry")

    following(own, good)
    assert "ended" not in caplog.text


def test_a_mounted_registry_is_its_own(
    deployment: Deployment,
    three_versions: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = promoted_elsewhere(deployment, three_versions, tmp_path / "mine")
    facts = asyncio.run(read_all(own))
    others = _OtherRegistries(own)
    shutil.copytree(three_versions.root, own.models_dir)  # as a container mounts it
    others.warn(CHAMPION_KEY, facts[CHAMPION_KEY])
    assert caplog.text == ""
    shutil.rmtree(own.models_dir)
    others.warn(CHAMPION_KEY, facts[CHAMPION_KEY])
    assert "is announced from the registry" in caplog.text
