"""Decoding in child processes with limits on memory and time.

A file that crashes a codec, or exceeds its limits, ends only a child process: its record is
`BadInput`, and the child is replaced. A child decodes one record at a time and imports Pillow,
soundfile and numpy, but no torch. Nothing that a child sends is unpickled.

After `isolate`, the whole process decodes in children; before, in the calling thread.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Limits
from ..errors import BadInput
from .pictures import Fit, decode_fitted, decode_image, decode_whole
from .videos import Size as VideoSize
from .videos import decode_described
from .waves import decode_wave

log = logging.getLogger(__name__)

Array = NDArray[Any]

CPU_S = 5
"""CPU seconds of one record, a video apart: the largest pictures that the limits admit take 2 to 3.
A video has `Limits.video_decode_s` beside it."""
WALL_S = 60.0
"""Seconds of one record, for a child that hangs; generous, since machines are busy."""
MEMORY = 768 * 1024 * 1024
"""Bytes beyond a child that has just started: `Limits.image_bytes`, the largest file three times
(as received, without its metadata, as libtiff holds it) and working memory."""
_REPLY = 1 << 28  # bytes: more than any side or duration of an encoder makes
_HEAD = struct.Struct(">II")  # bytes of the description and of the content
_DTYPES = ("uint8", "float32")
_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from braid.encoders.decoding.isolation import main; main({fd}, {pid})"
)


Size = float | Mapping[str, Any] | None
"""The side of a picture in pixels, the fields of its `Fit`, or None for its own size; the seconds
of a sound; of a video what `decode_described` takes."""


def _image(data: bytes, size: Any, limits: Limits) -> tuple[Array, int]:
    if isinstance(size, Mapping):
        return decode_fitted(data, Fit(**size), limits), 0
    if size is None:
        return decode_whole(data, limits), 0
    return decode_image(data, int(size), limits), 0


def _video(data: bytes, size: Any, limits: Limits) -> tuple[Array, int]:
    return decode_described(data, size, limits), 0


_KINDS: Mapping[str, Callable[[bytes, Any, Limits], tuple[Array, int]]] = {
    "image": _image,
    "audio": decode_wave,
    "video": _video,
}
_pool: DecodePool | None = None


def picture(data: bytes, size: int | Fit | None, limits: Limits) -> Array:
    """`decode_image` of `braid.encoders.decoding.pictures`, `decode_fitted` or, for None,
    `decode_whole`, in a child where `isolate` was called."""
    return _decode("image", data, asdict(size) if isinstance(size, Fit) else size, limits)[0]


def wave(data: bytes, seconds: float, limits: Limits) -> tuple[Array, int]:
    """`braid.encoders.decoding.waves.decode_wave`, in a child where `isolate` was called."""
    return _decode("audio", data, seconds, limits)


def video(data: bytes, frames: int, fit: VideoSize, limits: Limits, of: str = "middles") -> Array:
    """`braid.encoders.decoding.videos.decode_video`, in a child where `isolate` was called."""
    described = asdict(fit) if isinstance(fit, Fit) else fit
    return _decode("video", data, {"frames": frames, "of": of, "fit": described}, limits)[0]


def _decode(kind: str, data: bytes, size: Size, limits: Limits) -> tuple[Array, int]:
    pool = _pool
    if pool is None:
        return _KINDS[kind](data, size, limits)
    return pool.decode(kind, data, size, limits)


def isolate(pool: DecodePool | None) -> None:
    """Decode in `pool` from here on, in this whole process; None: where it is called."""
    global _pool
    _pool = pool


class DecodePool:
    """Child processes that decode, each started when it is first needed. Thread-safe.

    Args:
        processes: how many at once; a caller beyond them waits.
        cpu_s: CPU seconds, wall_s: seconds, memory: bytes that one record may take.
    """

    def __init__(
        self, processes: int, *, cpu_s: int = CPU_S, wall_s: float = WALL_S, memory: int = MEMORY
    ) -> None:
        self._cpu_s, self._wall_s, self._memory = cpu_s, wall_s, memory
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)
        self._started: set[_Child] = set()
        # The kernel ends a child with the thread that started it, so one thread starts all of them.
        self._starter = ThreadPoolExecutor(1, "decode-start")

    def decode(self, kind: str, data: bytes, size: Size, limits: Limits) -> tuple[Array, int]:
        """One record's picture or sound, and the sampling rate of a sound.

        Raises:
            BadInput: as the decoders; or a limit was exceeded, or two children in a row ended.
            TimeoutError: no child became free; there are more callers than children.
        """
        try:
            child = self._idle.get(timeout=4 * self._wall_s)
        except queue.Empty:
            raise TimeoutError("no decoding process became free") from None
        more_s = math.ceil(limits.video_decode_s) if kind == "video" else 0
        cpu_s = self._cpu_s + more_s
        request = {"kind": kind, "size": size, "limits": asdict(limits), "cpu_s": cpu_s}
        try:
            for last in (False, True):
                if child is None or not child.alive:
                    child = self._starter.submit(self._start, child).result()
                try:
                    return child.ask(request, data, self._wall_s)
                except _ChildEnded as error:
                    child.close()
                    log.warning("a decoding process ended: %s", error)
                    if last or error.certain:
                        raise BadInput(kind, f"does not decode: {error}") from None
            raise AssertionError("unreachable")
        finally:
            self._idle.put(child)

    def _start(self, ended: _Child | None) -> _Child:
        if ended is not None:
            ended.close()
            self._started.discard(ended)
        child = _Child(self._cpu_s, self._memory)
        self._started.add(child)
        return child

    def close(self) -> None:
        """Kill the children. Call it after the last decoding."""
        self._starter.shutdown(wait=True)
        for child in self._started:
            child.close()


class _ChildEnded(Exception):
    """A child ended. `certain`: caused by its record, not by another process on the machine."""

    def __init__(self, reason: str, *, certain: bool) -> None:
        super().__init__(reason)
        self.certain = certain


class _Child:
    """One child process and the socket to it."""

    def __init__(self, cpu_s: int, memory: int) -> None:
        self._cpu_s, self._memory = cpu_s, memory
        self._socket, theirs = socket.socketpair()
        with theirs:
            code = _START.format(path=sys.path, fd=theirs.fileno(), pid=os.getpid())
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C goes to the parent, which ends the child
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any], data: bytes, wall_s: float) -> tuple[Array, int]:
        """Raises BadInput, or _ChildEnded if the child must be replaced."""
        deadline = time.monotonic() + wall_s
        limits = {"cpu_s": self._cpu_s, "memory": self._memory, **request}
        try:
            _send(self._socket, limits, data, deadline)
            answer, content = _receive(self._socket, deadline)
        except TimeoutError:
            raise _ChildEnded(f"takes more than {wall_s:g} s", certain=True) from None
        except (OSError, EOFError):
            raise self._reason(limits["cpu_s"]) from None
        if "reason" in answer:
            raise BadInput(str(answer["field"]), str(answer["reason"])[:500])
        if answer.get("memory"):
            raise _ChildEnded(f"takes more than {self._memory} bytes of memory", certain=True)
        dtype, shape = answer["dtype"], [int(side) for side in answer["shape"]]
        if dtype not in _DTYPES or math.prod(shape) * np.dtype(dtype).itemsize != len(content):
            raise _ChildEnded("the decoder answered nonsense", certain=True)
        return np.frombuffer(content, dtype).reshape(shape), int(answer["rate"])

    def _reason(self, cpu_s: float) -> _ChildEnded:
        """The reason why the child ended. (Its socket closes only when it ends.)"""
        try:
            status = self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            status = 0
        if status == -signal.SIGXCPU:
            return _ChildEnded(f"takes more than {cpu_s:g} s of CPU time", certain=True)
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        return _ChildEnded(f"the decoder ended with {name}", certain=False)

    def close(self) -> None:
        """Kill the child. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._socket.close()


# Messages: two lengths, a description as JSON, bytes


def _send(
    link: socket.socket, description: Mapping[str, Any], content: Any, deadline: float | None
) -> None:
    head = json.dumps(description).encode()
    view = memoryview(content).cast("B")
    for part in (_HEAD.pack(len(head), len(view)) + head, view):
        link.settimeout(_left(deadline))
        link.sendall(part)


def _receive(link: socket.socket, deadline: float | None) -> tuple[dict[str, Any], bytearray]:
    lengths = _HEAD.unpack(_exactly(link, _HEAD.size, deadline))
    if max(lengths) > _REPLY:
        raise EOFError
    head = _exactly(link, lengths[0], deadline)
    content = _exactly(link, lengths[1], deadline)
    try:
        return json.loads(head), content
    except ValueError:
        raise EOFError from None


def _exactly(link: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        link.settimeout(_left(deadline))
        count = link.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]
    return data


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


# The child


def main(fd: int, parent: int) -> None:
    """Serve records until the parent closes the socket or ends."""
    if sys.platform == "linux":  # prctl(PR_SET_PDEATHSIG, SIGKILL)
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import soundfile  # noqa: F401 (before the memory is limited)
    from PIL import Image

    Image.init()
    link = socket.socket(fileno=fd)
    before = _data_bytes()
    try:
        while True:
            request, data = _receive(link, None)
            _limit(request["cpu_s"], before + request["memory"])
            _answer(link, request, bytes(data))
    except (EOFError, OSError):
        return


def _answer(link: socket.socket, request: Mapping[str, Any], data: bytes) -> None:
    try:
        limits = Limits(**request["limits"])
        array, rate = _KINDS[request["kind"]](data, request["size"], limits)
        described = {"dtype": array.dtype.name, "shape": array.shape, "rate": rate}
        content: Any = np.ascontiguousarray(array).reshape(-1)
    except BadInput as error:
        described, content = {"field": error.field, "reason": error.reason}, b""
    except MemoryError:
        described, content = {"memory": True}, b""
    except Exception as error:  # noqa: BLE001 (the parent cannot see it otherwise)
        reason = f"does not decode: {type(error).__name__}: {error}"[:500]
        described, content = {"field": request["kind"], "reason": reason}, b""
    _send(link, described, content, None)


def _limit(cpu_s: int, memory: int) -> None:
    """CPU time from now on, in whole seconds as the kernel counts it, and memory."""
    used = math.ceil(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + cpu_s, resource.RLIM_INFINITY))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.RLIM_INFINITY))


def _data_bytes() -> int:
    """The private writable memory of this process, which RLIMIT_DATA limits."""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmData:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return 0
