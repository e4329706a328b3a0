"""Processes of `python -m braid` that begin with their imports made.

They are forked from one that has made them.

The imports of a worker with an encoder take some seconds of CPU, and the tests start some hundred.
One process for each process of pytest imports them, has one thread, and forks a child for each
command; the child has its own session, log and environment, and runs the module as `python -m`
does. `braid up`, `braid demo` and the pages of the docs start processes without this.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from braid.stream.local.child import Child

ROOT = Path(__file__).parents[1]
IMPORTS = (
    "torch",
    "braid.encoders.training.loop",
    "braid.stream.cli.main",
    "braid.stream.worker.app",
    "braid.stream.index_node.node",
    "braid.stream.trainer.retrain",
)
MODULES = ("braid", "tests.stream.unsafe_worker")  # read the settings when they run
AT_START = ("PYTHON", "LD_", "OMP_", "MKL_", "ATEN_", "MALLOC_", "OPENBLAS_", "ONEDNN_")
"""How variables begin that are read before or while these are imported."""
KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Forked:
    """A forked process, with those methods of `subprocess.Popen` that `Child` uses."""

    def __init__(self, server: Server, pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask(do="poll", pid=self.pid)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            self._server.ask(do="signal", pid=self.pid, signum=int(signum))

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.01)
        return status


class Server:
    """The process that forks; used from any thread."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, "-m", "tests.prepared", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        self._answers = self._socket.makefile("rb")

    def ask(self, **request: Any) -> Any:
        with self._lock:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._answers.readline()
        assert line, "the process that forks has ended"
        return json.loads(line)

    def close(self) -> None:
        """End it, and with it what it has forked."""
        self._answers.close()
        self._socket.close()
        self._process.wait()


@cache
def server() -> Server:
    """That of this process, started by its first child."""
    one = Server()
    atexit.register(one.close)
    return one


class PreparedChild(Child):
    """A child that runs a module of Python with the imports made.

    Attributes:
        errors: the file of its standard error; None: of both.
    """

    errors: Path | None = None

    def start(self) -> Child:
        env = {**os.environ, **self._env}
        asked = {name: value for name, value in env.items() if name.startswith(AT_START)}
        here = {name: value for name, value in os.environ.items() if name.startswith(AT_START)}
        python, flag, module, *_ = [*self.command, "", "", ""]
        braid = (python, flag) == (sys.executable, "-m") and module in MODULES
        if not braid or self._pass_fds or asked != here:
            return super().start()
        assert not self.running
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        cwd = str(self._cwd or Path.cwd())
        pid = server().ask(
            do="fork",
            argv=self.command[2:],
            env=env,
            cwd=cwd,
            out=str(self.log),
            err=str(self.errors or self.log),
        )
        self._process = Forked(server(), pid)  # type: ignore[assignment]
        return self


def run(
    *arguments: str, folder: Path, env: Mapping[str, str], timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """`python -m ARGUMENTS` to its end.

    Args:
        folder: of its output, in files.
        env: variables added to this process's environment.
    """
    out, err = (folder / f"{uuid.uuid4().hex}.{kind}" for kind in ("out", "err"))
    child = PreparedChild("run", [sys.executable, "-m", *arguments], log=out, env=env)
    child.errors = err
    try:
        status = child.start().wait(timeout)
    finally:
        child.stop(0)
    said = err.read_text() if err.exists() else ""
    return subprocess.CompletedProcess(arguments, status, out.read_text(), said)


def serve(connection: socket.socket) -> list[str]:
    """Answer requests; returns in a forked child, what it has to run."""
    own = os.getpid()
    for line in connection.makefile("rb"):
        request = json.loads(line)
        answer: int | None = None
        match request["do"]:
            case "fork":
                answer = os.fork()
                if answer == 0:
                    connection.detach()
                    become(request, parent=own)
                    argv: list[str] = request["argv"]
                    return argv
            case "poll":
                pid, status = os.waitpid(request["pid"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            case "signal":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(request["pid"], request["signum"])
        connection.sendall(json.dumps(answer).encode() + b"\n")
    os._exit(0)  # pytest has ended, and so do they


def become(request: Mapping[str, Any], *, parent: int) -> None:
    """Make a forked process one of its own."""
    os.setsid()
    ctypes.CDLL(None).prctl(KILL_WITH_PARENT, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    out, err = (
        os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        for name in ("out", "err")
    )
    for ours, theirs in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(ours, theirs)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    random.seed()
    gc.enable()


def main(descriptor: int, imports: Sequence[str] = IMPORTS) -> None:
    gc.disable()
    for name in imports:
        importlib.import_module(name)
    gc.freeze()
    assert threading.active_count() == 1, threading.enumerate()
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads of libraries would be missing after a fork"
    module, *arguments = serve(socket.socket(fileno=descriptor))
    sys.argv = [module, *arguments]
    sys.modules.pop("__main__")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
