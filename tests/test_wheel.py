"""The built wheel: one top-level name, all that the packages need, and no clash with a user's own
modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("encoders", "index", "integrations", "stream")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("braid", *PACKAGES):
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=hidden)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, timeout=120)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_it_holds_every_file_under_one_name(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"braid"}
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {f"braid/{name}" for name in listed.stdout.split() if "/javascript/" not in name}
    assert files - names == set()
    assert {"braid/__init__.py", "braid/__init__.pyi", "braid/__main__.py"} <= names


def test_it_works_beside_modules_of_the_same_names(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    installed, own = tmp_path / "installed", tmp_path / "own"
    wheel.extractall(installed)
    (own / "encoders").mkdir(parents=True)
    for name in ("stream.py", "index.py", "encoders/__init__.py"):
        (own / name).write_text("raise RuntimeError('not this one')")
    check = "import braid; from braid import Client, Embedder, Producer; print(braid.__file__)"
    for arguments, expected in (
        (["-c", check], str(installed / "braid" / "__init__.py")),
        (["-m", "braid", "--help"], "retrain"),
    ):
        ran = subprocess.run(
            [sys.executable, *arguments],
            cwd=own,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        assert expected in ran.stdout
