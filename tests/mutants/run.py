"""Runs the tests of one mutant in a forked child.

The parent imports the packages that the tests need (torch and FAISS take seconds) and no module of
braid, so that a child imports the mutated module like any other.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import importlib.machinery
import importlib.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

import pytest
from hypothesis import HealthCheck, Phase, settings

from .operators import Mutant
from .targets import Target

ROOT = Path(__file__).parent.parent.parent
OWN = ("braid", "tests", "conftest")
SLOWER = 3  # times the CPU time of the tests without a mutation, and
CPU_S, WALL_S = 2, 90  # seconds more: then a mutant counts as killed
MEMORY = 16 * 2**30
NOT_RUN = ("kafka", "redis", "browser", "gpu", "slow")
# Importing the conftest files costs more than most tests, which need no fixture of theirs.
OPTIONS = ("-q", "-x", "--timeout=0", "--noconftest", "-m", f"not ({' or '.join(NOT_RUN)})")
FAILED = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)  # or it cannot be imported
PLUGINS = ("pytest_timeout", "_hypothesis_pytestplugin")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run of the tests ended. `passed` is False where they failed or took too long."""

    passed: bool
    cpu_s: float
    wall_s: float
    output: str


class Runner:
    """Runs the tests of one target.

    Raises:
        RuntimeError: they fail without a mutation.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.source = (ROOT / target.file).read_text()
        for name in self._plain().output.split("\0")[1].split():
            with contextlib.suppress(Exception):  # some exist only below others
                importlib.import_module(name)
        gc.freeze()  # else pytest's collections of garbage cost more than most tests
        self.plain = self._plain()  # quicker: the packages are imported

    def kills(self, mutant: Mutant) -> bool:
        """Whether a test fails with this mutant, or the tests take too long."""
        cpu_s = SLOWER * self.plain.cpu_s + CPU_S
        wall_s = SLOWER * self.plain.wall_s + WALL_S
        return not self._run(mutant, cpu_s=cpu_s, wall_s=wall_s).passed

    def check(self) -> None:
        """Run the tests without a mutation: what fails now may have failed for another reason.

        Raises:
            RuntimeError: they fail.
        """
        self._plain()

    def _plain(self) -> Outcome:
        outcome = self._run(None, cpu_s=600, wall_s=600)
        if not outcome.passed:
            raise RuntimeError(f"the tests of {self.target.file} fail:\n{outcome.output}")
        return outcome

    def _run(self, mutant: Mutant | None, *, cpu_s: float, wall_s: float) -> Outcome:
        folder = Path(tempfile.mkdtemp(prefix="braid-mutant-"))
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            self._test(mutant, folder, cpu_s)
        try:
            while True:
                pid, status, used = os.wait4(child, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() - began > wall_s:
                    os.killpg(child, signal.SIGKILL)
                time.sleep(0.01)
        except BaseException:
            os.killpg(child, signal.SIGKILL)
            raise
        output = (folder / "output").read_text(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        if code not in (pytest.ExitCode.OK, *FAILED) and code >= 0:
            raise RuntimeError(f"pytest ended with {code}:\n{output}")
        shutil.rmtree(folder, ignore_errors=True)
        wall = time.monotonic() - began
        return Outcome(code == 0, used.ru_utime + used.ru_stime, wall, output)

    def _test(self, mutant: Mutant | None, folder: Path, cpu_s: float) -> None:
        """In the child: run the tests and end the process."""
        code = 70
        try:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s) + 1, int(cpu_s) + 1))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            if mutant is not None:
                mutated = mutant.tree(self.source)
                sys.meta_path.insert(
                    0, _Finder(self.target.module, ROOT / self.target.file, mutated)
                )
            settings.register_profile(
                "mutants",
                phases=[Phase.explicit, Phase.generate],
                database=None,
                derandomize=True,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            settings.load_profile("mutants")
            plugins = [part for name in PLUGINS for part in ("-p", name)]
            place = [f"--rootdir={ROOT}", f"--basetemp={folder / 'temp'}", "-p", "no:cacheprovider"]
            tests = [str(ROOT / test) for test in self.target.tests]
            code = int(pytest.main([*OPTIONS, *plugins, *place, *tests]))
            if mutant is None:
                print("\0" + " ".join(_foreign(sys.modules)), flush=True)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # threads of a test may wait for ever


def _foreign(names: Sequence[str] | dict[str, ModuleType]) -> list[str]:
    """What is not loaded anew; pytest wants to load plugins itself."""
    return [name for name in names if name.split(".")[0] not in (*OWN, *PLUGINS, "__main__")]


class _Finder:
    """Finds the mutated module before the one on disk."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path, self._tree = name, path, tree

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        loader = _Loader(name, str(self._path))
        loader.code = compile(self._tree, str(self._path), "exec")
        return importlib.util.spec_from_loader(name, loader)


class _Loader(importlib.machinery.SourceFileLoader):
    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        return self.code
