"""Protobuf schemas: .proto texts and files become descriptors, by protoc.

Some clients register a schema as base64 of its descriptor instead of its text.
"""

from __future__ import annotations

import base64
import binascii
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

WITHIN_S = 10.0
SAID_CHARS = 300
Files = Mapping[str, FileDescriptorProto]


def compiled(main: str, schemas: Mapping[str, str]) -> Sequence[Any]:
    """The message types at the top of a schema, in its order.

    Args:
        main: the file of the schema.
        schemas: file -> its text, or base64 of its descriptor; of the schema and of all that it
            imports. What Google ships is there without.

    Raises:
        ValueError: they do not compile, or a name leads out of the folder of the files.
    """
    files = {name: file for name, text in schemas.items() if (file := _serialised(name, text))}
    if texts := {name: text for name, text in schemas.items() if name not in files}:
        files |= _compiled_texts(texts)
    return list(_pool(files).FindFileByName(main).message_types_by_name.values())


def in_file(path: Path, message: str) -> Any:
    """The descriptor of a message in a .proto file or a descriptor set.

    Raises:
        ValueError: the file does not compile or parse, or has no such message.
        OSError: it cannot be read.
    """
    if path.suffix == ".proto":
        files = _protoc(path.parent, [path.name])
    else:
        files = _files(path.read_bytes())
    try:
        return _pool(files).FindMessageTypeByName(message)
    except KeyError:
        raise ValueError(f"there is no message {message}") from None


def _pool(files: Files) -> DescriptorPool:
    """The files and what they import. Raises ValueError."""
    pool, added = DescriptorPool(), set[str]()

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        file = files.get(name) or _protoc(_google(), [name])[name]
        for other in file.dependency:
            add(other)
        try:
            pool.Add(file)
        except TypeError as error:
            raise ValueError(f"{name} is no valid descriptor: {error}") from None

    for name in files:
        add(name)
    return pool


def _serialised(name: str, text: str) -> FileDescriptorProto | None:
    """The descriptor that a schema is base64 of; None: it is a text, which has a semicolon."""
    try:
        file = FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, DecodeError, ValueError):
        return None
    if not file.ListFields():  # of an empty text
        return None
    file.name = name
    return file


def _compiled_texts(texts: Mapping[str, str]) -> Files:
    with tempfile.TemporaryDirectory(prefix="braid-proto-") as folder:
        for name, text in texts.items():
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"the name {name[:80]!r} is no path of a schema")
            path = Path(folder, *place.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return _protoc(Path(folder), texts)


def _protoc(folder: Path, names: Iterable[str]) -> Files:
    """The files of a folder and what they import. Raises ValueError."""
    with tempfile.NamedTemporaryFile(suffix=".desc") as out:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={folder}"]
        command += [f"--proto_path={_google()}", "--include_imports"]
        # Whole paths: a name may look like a flag.
        command += [f"--descriptor_set_out={out.name}", *(str(folder / name) for name in names)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
        if done.returncode != 0:
            raise ValueError(" ".join(done.stderr.split())[:SAID_CHARS])
        return _files(Path(out.name).read_bytes())


def _files(descriptors: bytes) -> Files:
    try:
        return {file.name: file for file in FileDescriptorSet.FromString(descriptors).file}
    except DecodeError:
        raise ValueError("it is neither a .proto file nor a descriptor set") from None


def _google() -> Path:
    """The folder of Google's own .proto files. Raises ValueError."""
    if find_spec("grpc_tools") is None:
        raise ValueError("there is no protoc: pip install 'braid-stream[sources]'")
    import grpc_tools

    return Path(grpc_tools.__file__).parent / "_proto"
