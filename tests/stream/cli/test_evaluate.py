"""`braid eval --benchmark`: the benchmarks of a clone by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_it_runs_the_benchmark_with_its_options() -> None:
    options = ("--months", "2", "--changed", "0.05")
    plain = run(ROOT, "benchmarks.judge_power", *options, "--json")
    ours = run(ROOT, "braid", "eval", "--benchmark", f"judge_power {' '.join(options)}", "--json")
    assert (plain.returncode, ours.returncode) == (0, 0), ours.stderr
    assert json.loads(ours.stdout) == json.loads(plain.stdout)


def test_its_failure_is_the_command_s() -> None:
    done = run(ROOT, "braid", "eval", "--benchmark", "xor --part none")
    assert done.returncode == 2
    assert "invalid choice: 'none'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["xor"], "no benchmarks/xor.py in this folder"),
        (["../xor"], "no benchmarks/../xor.py"),
        ([""], "no benchmarks/.py"),
        (["xor 'a"], "xor 'a: No closing quotation"),
        (["xor", "--model", "1"], "no --model, --data or --out"),
    ],
)
def test_what_it_cannot_run_is_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "xor.py").touch()
    (tmp_path / "benchmarks").mkdir()
    done = run(tmp_path, "braid", "eval", "--benchmark", *arguments)
    assert done.returncode == os.EX_CONFIG
    assert said in done.stderr
    assert "Traceback" not in done.stderr
