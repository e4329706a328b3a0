"""A test that hangs in a process of pytest-xdist says where."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFTEST = """
from tests.time_limit import WhereTestsHang

def pytest_configure(config):
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(WhereTestsHang(config))
"""
HANGS = """
import time

def test_passes():
    pass

def test_hangs():
    print("as far as here")
    time.sleep(60)
"""
OPTIONS = ("-p", "xdist", "-n", "1", "-p", "pytest_timeout")
LIMIT = ("--timeout", "1", "--timeout-method", "thread")


@pytest.mark.slow
def test_it_is_shown_where_a_test_hung(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hangs.py").write_text(HANGS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *LIMIT],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "as far as here" in done.stderr
    assert done.stderr.startswith("++++"), "it says nothing of the test that passed"
    assert "in test_hangs\n    time.sleep(60)" in done.stderr
