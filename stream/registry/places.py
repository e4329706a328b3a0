"""Places that versions are pushed to and pulled from: the hub, an object store, a folder.

    hf://owner/name[@revision]                 a repository of the Hugging Face hub (HF_ENDPOINT)
    s3://bucket/prefix, gs://, az://           an object store, with credentials of the environment
    file:///folder, or a path                  a folder

A place holds one version: its files, `manifest.json` and, to read, `README.md`.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from braid.encoders.errors import CheckpointError
from braid.encoders.manifest import FILE_NAME, read_manifest
from braid.index.files import sync_folder, synced
from braid.index.redact import redacted

from ..errors import ConfigError, RegistryError
from .object_store import SCHEMES, ObjectStore, put_waiting
from .version_files import inner_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "hf"
_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class Place(Protocol):
    """Holds the files of one version."""

    def put(self, files: Mapping[str, Path], summary: str) -> None:
        """Write files, by their names there; a version that is there is replaced.

        A reader sees no manifest without all of the files that it names.

        Args:
            summary: what changes, in one line.

        Raises:
            RegistryError: the place refuses it, does not answer, or holds something else.
        """

    def fetch(self, name: str, path: Path) -> None:
        """Write the file of a name to `path`. Raises RegistryError: there is none, or no answer."""


def place_of(
    address: str, options: Mapping[str, str], *, public: bool = False, pull: bool = False
) -> Place:
    """The place at an address.

    Args:
        options: of the object store, as `model.registry_options`.
        public: a repository that is made on the hub can be read by everyone.
        pull: `owner/name` that is no folder is a repository, as for `braid models import`. It is
            not one to push to, or a mistyped path would publish a version.

    Raises:
        ConfigError: no such scheme, or a wrong name of a repository.
    """
    scheme = urlsplit(address).scheme
    if scheme == HUB:
        return HubRepository(address.removeprefix(f"{HUB}://"), public=public)
    if public:
        raise ConfigError(f"--public is of repositories of the hub, hf://owner/name; got {address}")
    if scheme in SCHEMES:
        return Bucket(ObjectStore(address, options))
    if scheme == "file":
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"{redacted(address)}: expected file:///FOLDER, an absolute path")
        return Folder(Path(unquote(parts.path)))
    if "://" in address:
        known = ", ".join(f"{one}://" for one in (HUB, *SCHEMES, "file"))
        raise ConfigError(f"{redacted(address)}: expected one of {known} or a folder")
    folder = Path(address).expanduser()
    if pull and not folder.exists() and _REPOSITORY.fullmatch(address):
        return HubRepository(address)
    return Folder(folder)


class HubRepository:
    """A model repository of the Hugging Face hub.

    Args:
        name: owner/name, or owner/name@revision for a branch, a tag or a commit.
        public: see `place_of`.

    Raises:
        ConfigError: a wrong name.
    """

    def __init__(self, name: str, *, public: bool = False) -> None:
        parts = _REPOSITORY.fullmatch(name)
        if parts is None:
            raise ConfigError(f"hf://{name[:200]}: expected hf://owner/name[@revision]")
        self._name, self._revision = parts["name"], parts["revision"]
        self._public = public
        self._commit: str | None = None

    def __str__(self) -> str:
        return f"{HUB}://{self._name}" + (f"@{self._revision}" if self._revision else "")

    def put(self, files: Mapping[str, Path], summary: str) -> None:
        """One commit, on the branch `revision`, else on the repository's main branch."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        api = self._api()
        with self._answering("pushing"):
            api.create_repo(self._name, private=not self._public, exist_ok=True)
            if self._revision is not None:
                api.create_branch(self._name, branch=self._revision, exist_ok=True)
            api.create_commit(
                self._name,
                [
                    *(CommitOperationAdd(name, path) for name, path in files.items()),
                    *(CommitOperationDelete(name) for name in _stale(self, files)),
                ],
                commit_message=summary,
                revision=self._revision,
            )

    def fetch(self, name: str, path: Path) -> None:
        """All files are those of one commit: the first fetch chooses it."""
        api = self._api()
        with self._answering(f"fetching {name}"):
            if self._commit is None:
                self._commit = api.model_info(self._name, revision=self._revision).sha
            folder = path.parent / f".{uuid.uuid4().hex[:8]}.tmp"
            try:
                done = api.hf_hub_download(
                    self._name, name, revision=self._commit, local_dir=folder
                )
                _copied(Path(done), path)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(library_name="braid")

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        import httpx
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            yield
        except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
            hidden = type(error) in (RuntimeError, LocalEntryNotFoundError)  # no answer, the latter
            if isinstance(error, EntryNotFoundError) and not hidden:
                raise RegistryError(f"{self}: {what}: there is no such file") from error
            cause = error.__cause__ if hidden and error.__cause__ else error
            lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
            why = redacted(" ".join(lines) or repr(cause))[:300]
            raise RegistryError(f"{self}: {what} failed: {why}") from error


class Bucket:
    """A prefix in an object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def __str__(self) -> str:
        return str(self._store)

    def put(self, files: Mapping[str, Path], summary: str) -> None:
        stale = _stale(self, files)
        if self._store.get(FILE_NAME) is not None:
            self._store.remove([FILE_NAME, *stale])
        for name in sorted(files, key=lambda name: name == FILE_NAME):
            put_waiting(self._store, name, files[name])

    def fetch(self, name: str, path: Path) -> None:
        self._store.fetch_file(name, path)


class Folder:
    """A folder, made when a version is written to it."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def __str__(self) -> str:
        return str(self._path)

    def is_within(self, folder: Path) -> bool:
        return self._path.resolve().is_relative_to(folder.resolve())

    def put(self, files: Mapping[str, Path], summary: str) -> None:
        manifest, stale = self._path / FILE_NAME, _stale(self, files)
        try:
            there = {one.name for one in self._path.iterdir()} if self._path.exists() else set()
            own = {Path(name).parts[0] for name in files}  # without a manifest, a push that ended
            if not manifest.is_file() and there - own:
                raise RegistryError(f"{self}: holds something else than a version")
            manifest.unlink(missing_ok=True)
            for name in stale:
                (self._path / name).unlink(missing_ok=True)
            for name in sorted(files, key=lambda name: name == FILE_NAME):
                target = self._path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _copied(files[name], target)
        except OSError as error:
            raise RegistryError(f"{self}: cannot be written: {error}") from error

    def fetch(self, name: str, path: Path) -> None:
        try:
            _copied(self._path / name, path)
        except FileNotFoundError:
            raise RegistryError(f"{self}: {name} is missing") from None
        except OSError as error:
            raise RegistryError(f"{self}: {name} cannot be read: {error}") from error


def _stale(place: Place, files: Mapping[str, Path]) -> list[str]:
    """Files of the version at a place that one made of `files` has not, such as its records."""
    with TemporaryDirectory(prefix="braid-push-") as made:
        try:
            place.fetch(FILE_NAME, Path(made) / FILE_NAME)
            old = inner_files(read_manifest(Path(made)))
        except (CheckpointError, RegistryError):
            return []  # none is there
    return sorted(set(old) - set(files))


def _copied(source: Path, target: Path) -> None:
    with source.open("rb") as file, synced(target) as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    sync_folder(target.parent)
