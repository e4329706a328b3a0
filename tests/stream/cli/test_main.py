"""The version, and shell completion."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from braid.stream.cli.main import app

ROOT = Path(__file__).parents[3]
BRAID = Path(sys.executable).with_name("braid")


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"braid {project['version']}\n")


ENDING = """
import atexit, os, sys, threading, time
from braid.stream.cli.main import main

class Kept:
    def __del__(self, write=os.write):
        write(1, b"finalized ")

def work():
    time.sleep(0.2)
    atexit.register(os.write, 1, b"atexit ")
    os.write(1, b"thread ")

sys.kept = Kept()
threading.Thread(target=work).start()
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--version",), 0),
        (("produce", "nothing.csv"), 1),
        (("config", "--nothing"), 2),
        (("--log-format", "xml", "config"), os.EX_CONFIG),
    ],
)
def test_a_command_ends_without_the_finalization_of_python(
    arguments: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    """In it, native threads that ask for the GIL end the process by SIGABRT."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING, *arguments],
        cwd=tmp_path,
        env={**os.environ, "BRAID_KAFKA__BOOTSTRAP": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "thread" in done.stdout
    assert "atexit" in done.stdout
    assert "finalized" not in done.stdout
    assert bool(status) == bool(done.stderr)  # its buffers are written
    assert bool(status) != ("braid 0." in done.stdout)


@pytest.mark.slow
def test_completion_installs_and_completes(tmp_path: Path) -> None:
    """In a bash with an empty home: install it, load it, complete `braid dead-letters re`."""
    script = f"""
        {BRAID} --install-completion >/dev/null || exit 1
        source ~/.bash_completions/braid.sh
        complete -p braid || exit 1
        COMP_WORDS=(braid dead-letters re) COMP_CWORD=2 COMP_LINE="braid dead-letters re"
        _braid_completion {BRAID}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F _braid_completion braid" in done.stdout
    assert done.stdout.splitlines()[-1] == "replay"


@pytest.mark.slow
def test_completion_is_shown() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{BRAID} --show-completion; exit $?"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "_BRAID_COMPLETE=complete_bash" in done.stdout
