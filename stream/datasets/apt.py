"""Debian packages without root: `apt-get download` and `dpkg-deb -x` into a folder of one's own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import StreamError

APT = ("apt-get", "-q", "-oAPT::Sandbox::User=root")
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much (0: unknown)


class AptError(StreamError):
    """A package cannot be had; the message says what is missing or what apt said."""


def fetch_package(package: str, part: Path, target: Path, progress: Progress | None = None) -> None:
    """Download `package` and put its folder `part` at `target`, which appears only when whole.

    Args:
        package: its name in apt.
        part: a folder inside the package, such as usr/share/x.
        target: must not exist; its parent is made and holds the temporary files.
        progress: told the step, and bytes done and in all.

    Raises:
        AptError: apt-get or dpkg-deb is not there, or apt cannot get the package.
    """
    tell = progress or (lambda what, done, total: None)
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise AptError(f"{program} is not on this machine")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}-") as name:
        work = Path(name)
        options = _options(package, work, tell)
        size = _run([*APT, "--print-uris", *options, "download", package], work).split()[2]
        _download(package, options, work, int(size), tell)
        archive = next(work.glob("*.deb"))
        tell("unpacking", 0, 0)
        unpacked = work / "unpacked"
        _run(["dpkg-deb", "-x", str(archive), str(unpacked)], work)
        try:
            (unpacked / part).rename(target)
        except OSError as error:
            if not target.is_dir():  # another process was quicker
                raise AptError(f"{package} is not what was expected: {error}") from error


def _options(package: str, work: Path, progress: Progress) -> list[str]:
    """None where apt knows the package, else those for package lists of our own in `work`.

    A fresh machine or container often has no lists, and only root may fetch them to their usual
    place; into a folder of one's own anybody may.
    """
    try:
        _run([*APT, "--print-uris", "download", package], work)
    except AptError:
        (work / "lists" / "partial").mkdir(parents=True)
        (work / "archives" / "partial").mkdir(parents=True)
        own = [f"-oDir::State::Lists={work / 'lists'}", f"-oDir::Cache={work}"]
        progress("fetching apt's package lists", 0, 0)
        _run([*APT, *own, "update"], work)
        return own
    return []


def _run(command: Sequence[str], work: Path) -> str:
    """Run one program to its end; what it printed. Raises `AptError` with what it said."""
    done = subprocess.run(
        command, cwd=work, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        output = " ".join((done.stderr or done.stdout).split())[-500:]
        raise AptError(f"`{command[0]}` failed with status {done.returncode}: {output}")
    return done.stdout


def _download(
    package: str, options: Sequence[str], work: Path, size: int, progress: Progress
) -> None:
    """`apt-get download`, telling how far it is by the size of the growing file."""
    command = [*APT, *options, "download", package]
    log = work / "apt.log"
    with log.open("wb") as out:
        running = subprocess.Popen(command, cwd=work, stdout=out, stderr=out)
        try:
            while running.poll() is None:
                grown = sum(path.stat().st_size for path in work.glob("*.deb*") if path.exists())
                progress("downloading", min(grown, size), size)
                time.sleep(0.2)
        finally:
            if running.poll() is None:
                running.kill()
                running.wait()
    if running.returncode != 0:
        raise AptError(f"`apt-get download` failed: {log.read_text(errors='replace')[-500:]}")
    progress("downloading", size, size)
