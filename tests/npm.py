"""Packages of npm for a test, fetched once into the folder of downloads."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from braid.stream.datasets.sources import default_cache
from braid.stream.local.filelock import file_lock
from tests.conftest import missing


def installed(*packages: str) -> Path:
    """The folder node_modules with these packages; skips the test where there is no npm.

    One that cannot be fetched fails the test in CI.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    name = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    folder = default_cache() / "npm" / name
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "lock", what="npm", timeout=300):
        if not (folder / "done").is_file():
            flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
            done = subprocess.run(
                [npm, "install", *flags, *packages],
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            if done.returncode != 0:
                missing(f"npm cannot fetch {packages}: {done.stderr[-500:]}")
            (folder / "done").touch()
    return folder / "node_modules"
