"""Child processes: started with a log file, stopped by pid, ended with their parent.

One `Child` is one process. It runs in a session of its own, so that Ctrl-C in a terminal reaches
the parent only, which then stops its children in order. On Linux the kernel ends it with its parent
(prctl(2), PR_SET_PDEATHSIG), so that a killed test run or demo leaves no process. That signal
belongs to the *thread* that started the child: start children from a thread that outlives them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import StreamError
from .filelock import FileLockError, file_lock

# Set the parent-death signal in the child's own process, then exec the command. Done by a short
# interpreter start instead of a preexec_fn, which is unsafe in a process with threads.
_LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    print(f"cannot start {sys.argv[2]}: {error}", file=sys.stderr)
    os._exit(127)
"""

# Below the ephemeral ports of Linux (ip_local_port_range: from 32768 on) and of RFC 6335 (49152).
SERVER_PORTS = 20_000, 32_768
PORT_TRIES = 20


class ChildError(StreamError):
    """A child ended, or was not ready in time; the message holds the end of its log."""


class Child:
    """One child process whose output goes to a log file.

    Args:
        name: its name in messages.
        command: the program and its arguments.
        log: the file to which standard output and standard error are appended; its folder is made.
        env: variables added to this process's environment.
        cwd: the folder it runs in.
        pass_fds: descriptors that it inherits, such as a lock's.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._env = dict(env or {})
        self._cwd = cwd
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Child:
        """Start the process (again, if it has ended). Raises `ChildError` if it still runs."""
        if self.running:
            raise ChildError(f"{self.name} runs already (pid {self.pid})")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [*launcher, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._env},
                cwd=self._cwd,
                pass_fds=self._pass_fds,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        """The process id of the running or ended child. Raises `ChildError` before `start`."""
        if self._process is None:
            raise ChildError(f"{self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs or before it started."""
        return None if self._process is None else self._process.poll()

    def send(self, signum: int) -> None:
        """Send one signal, by pid, unless the child has ended."""
        if self._process is not None:
            self._process.send_signal(signum)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status once it ends. Raises `subprocess.TimeoutExpired` after `timeout` s."""
        if self._process is None:
            raise ChildError(f"{self.name} was not started")
        return self._process.wait(timeout)

    def stop(self, grace: float = 10.0) -> int | None:
        """SIGTERM, then SIGKILL after `grace` seconds; 0 means SIGKILL at once."""
        stop_all([self], grace)
        return self.status

    def tail(self, lines: int = 30) -> str:
        """The last lines of the log, for a message."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 64 * 1024))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:]) or "(empty log)"

    def copy_output(self, start: int = 0) -> Iterator[None]:
        """Copy the log from byte `start` on to standard error until the child ends.

        Yields after each piece: the caller pauses, or stops.
        """
        with self.log.open("rb") as output:
            output.seek(start)
            running = True
            while running:
                running = self.running  # before the last piece is read
                sys.stderr.write(output.read().decode("utf-8", "replace"))
                sys.stderr.flush()
                if running:
                    yield

    def check(self) -> None:
        """Raise `ChildError` with the end of the log if the child has ended."""
        status = self.status
        if status is not None:
            raise ChildError(
                f"{self.name} ended with status {status}; the end of {self.log}:\n{self.tail()}"
            )

    def wait_until(
        self,
        ready: Callable[[], bool],
        *,
        timeout: float,
        every: float = 0.05,
        what: str = "answer",
    ) -> None:
        """Wait until `ready()` is true; raises `ChildError` if it ends first or time is up."""
        deadline = time.monotonic() + timeout
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ChildError(
                    f"{self.name} did not {what} within {timeout:g} s; "
                    f"the end of {self.log}:\n{self.tail()}"
                )
            time.sleep(every)


def stop_all(children: Sequence[Child], grace: float) -> None:
    """SIGTERM to all at once, and SIGKILL after `grace` seconds; 0: SIGKILL at once."""
    running = [child for child in children if child.running]
    deadline = time.monotonic() + grace
    if grace > 0:
        for child in running:
            child.send(signal.SIGTERM)
            child.send(
                signal.SIGCONT
            )  # a stopped process handles SIGTERM only once it is continued
        for child in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
    for child in running:
        child.send(signal.SIGKILL)
    for child in running:
        child.wait()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago.

    It is below the ephemeral ports: while a server is down, an outgoing connection, even one to
    that port itself, might take an ephemeral one.
    """
    chance = random.SystemRandom()  # processes with the same seed must not try the same ports
    for number in (*chance.sample(range(*SERVER_PORTS), PORT_TRIES), 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("127.0.0.1 has no free port")


def port_answers(port: int) -> bool:
    """Whether a server on 127.0.0.1 accepts connections on `port`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


def start_server(
    name: str,
    command: Callable[[int], Sequence[str]],
    *,
    log: Path,
    port: int | None = None,
    prefer: int | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
    pass_fds: Sequence[int] = (),
) -> tuple[Child, int]:
    """Start a server on `port`, or on a free one, and wait until it accepts connections.

    Another process may take a free port before the server binds it: a server that ends at once is
    started again on another port.

    Args:
        name: its name in messages.
        command: the command line for a port.
        log: its log file.
        port: the port, or None for a free one.
        prefer: a port to try first, if it is free.
        timeout: seconds until it must answer.
        attempts: the number of ports to try.
        pass_fds: descriptors that the server inherits.

    Returns:
        The running child and its port.

    Raises:
        ChildError: it ended or did not answer; the message carries the end of its log.
    """
    for attempt in range(attempts):
        last = port is not None or attempt + 1 == attempts
        with contextlib.ExitStack() as until_it_answers:
            # The preferred one twice: what keeps it may end meanwhile.
            preferred = attempt < 2 and prefer and _reserved(prefer, until_it_answers, timeout)
            chosen = port or (prefer if prefer and preferred else free_port())
            if port_answers(chosen):
                raise ChildError(f"{name} cannot start: another process answers on port {chosen}")
            child = Child(name, command(chosen), log=log, pass_fds=pass_fds).start()
            try:
                child.wait_until(lambda port=chosen: port_answers(port), timeout=timeout)  # type: ignore[misc]
            except BaseException as error:
                child.stop(grace=0)
                if isinstance(error, ChildError) and not last:
                    continue
                raise
            return child, chosen
    raise ValueError("attempts must be at least 1")


def _reserved(port: int, held: contextlib.ExitStack, within_s: float) -> bool:
    """Whether nothing answers on a preferred port, which is then locked until `held` closes.

    Of two servers that start on one port at once, both would take the first one's answer for their
    own.
    """
    path = Path(tempfile.gettempdir()) / f"braid-{os.getuid()}-port-{port}.lock"
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(file_lock(path, what=f"port {port}", timeout=within_s))
        except FileLockError:
            return False  # another server has been starting there for long: a free port is better
        if port_answers(port):
            return False
        held.push(lock.pop_all())
        return True
