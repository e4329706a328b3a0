"""Data sets that become records: the demo's stamps, a folder of files, digits.

Each gives `Item`s: an id, the modalities that are there, and labels. Pictures and sounds are read
from disk when they are asked for, so a list of items is small.

*Stamps* is Debian's package `tuxpaint-stamps-default` (GPL-2): about 780 pictures with an English
caption and human spoken captions in other languages, in 16 categories.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, Protocol

from braid.encoders.types import MEDIA, MODALITIES, Label
from braid.modalities import listed

from ..errors import StreamError
from .apt import AptError, Progress, fetch_package

PACKAGE = "tuxpaint-stamps-default"
# Which language's spoken caption a stamp gets: the first of these that it has, the most complete
# first, so that nearly all are in one language.
LANGUAGES = ("fr", "es", "ru", "ca", "ro", "bg", "el", "be", "da", "lt", "nl", "ml")

MEDIA_TYPES = {
    ending: (name, media_type)
    for name in MEDIA
    for ending, media_type in MODALITIES[name].endings.items()
}
"""Modality and media type by a file's ending."""
FILE_TYPES = {".txt", *MEDIA_TYPES}
NOUNS = listed(tuple(MODALITIES[name].noun for name in MEDIA), "or")
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class DatasetError(StreamError):
    """A data set cannot be had or read; the message says what is missing or wrong."""


class File(Protocol):
    """A file that is read when its content is asked for, such as a Path."""

    @property
    def suffix(self) -> str: ...
    def read_bytes(self) -> bytes: ...
    def read_text(self, encoding: str, errors: str) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One record to be: what a data set knows of it, before it gets a time stamp.

    `text_source` is the text, `sources` the encoded file's bytes by modality, or each the file to
    read it from; `types` their media types.
    """

    id: str
    text_source: str | File | None = None
    sources: Mapping[str, bytes | File] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Label] = field(default_factory=dict)

    @property
    def text(self) -> str | None:
        source = self.text_source
        if source is None or isinstance(source, str):
            return source
        return source.read_text("utf-8", "replace").strip()

    def content(self, modality: str) -> bytes | None:
        """The bytes of one of `MEDIA`."""
        return _content(self.sources.get(modality))

    @property
    def media(self) -> dict[str, Any]:
        """The bytes of each of `MEDIA`."""
        return {name: self.content(name) for name in MEDIA}

    @property
    def category(self) -> str | None:
        label = self.labels.get("category")
        return label if isinstance(label, str) else None


def held_out(id_: str) -> bool:
    """Whether an item belongs to the demo's held-out fifth, decided by the sha256 of its id."""
    return int(hashlib.sha256(id_.encode()).hexdigest()[-8:], 16) / 2**32 >= 0.8


def default_cache() -> Path:
    """Where downloads are kept: `BRAID_CACHE`, else ~/.cache/braid."""
    return Path(os.environ.get("BRAID_CACHE") or Path.home() / ".cache" / "braid").expanduser()


def stamps(cache: Path, progress: Progress | None = None) -> list[Item]:
    """The stamps, downloaded with apt into `cache` the first time (161 MB), without root.

    Ids are paths below the category's folder, such as `marsupials/koala`; the sound is a spoken
    caption in the first of `LANGUAGES` that the stamp has.

    Raises:
        DatasetError: apt-get or dpkg-deb is not there, or apt cannot get the package.
    """
    root = cache / "stamps"
    if not root.is_dir():
        try:
            fetch_package(PACKAGE, Path("usr/share/tuxpaint/stamps"), root, progress)
        except AptError as error:
            raise DatasetError(f"the stamps cannot be had: {error}") from error
    placed: list[tuple[PurePath, Item]] = []
    for picture in sorted(root.rglob("*.png")):
        caption = picture.with_suffix(".txt")
        if not caption.is_file():  # a mirrored variant of another stamp
            continue
        sounds = (picture.with_name(f"{picture.stem}_desc_{tag}.ogg") for tag in LANGUAGES)
        sound = next((path for path in sounds if path.is_file()), None)
        with caption.open(encoding="utf-8", errors="replace") as lines:
            text = lines.readline().strip()
        item = Item(
            id=picture.stem,
            text_source=text,
            sources={"image": picture} | ({"audio": sound} if sound else {}),
            types={"image": "image/png"} | ({"audio": "audio/ogg"} if sound else {}),
        )
        placed.append((picture.relative_to(root), item))
    return _named(placed)


def folder(path: Path, *, whole: bool = False) -> list[Item]:
    """The records in a folder laid out as `<category>/<...>/<stem>.<suffix>`.

    Files of one folder and stem form one record: its `.txt` and one of each of `MEDIA_TYPES`, any
    of them missing. Files at the top have no category.
    Other and hidden files are left out.

    Args:
        whole: as in `_named`.

    Raises:
        DatasetError: not a folder, or nothing in it is a record's, or two of one
            modality share a stem.
    """
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder")
    placed = [(file.relative_to(path), file) for file in sorted(path.rglob("*"))]
    files = [
        (place, file)
        for place, file in placed
        if not any(part.startswith(".") for part in place.parts) and file.is_file()
    ]
    return folder_of(files, str(path), whole=whole)


def folder_of(
    files: Iterable[tuple[PurePath, File]], name: str, *, whole: bool = False
) -> list[Item]:
    """The same from the files of a folder.

    Args:
        files: (path in the folder, file).
        name: of the folder, for messages.
    """
    items = _grouped(files)
    if not items:
        raise DatasetError(f"{name} holds no .txt, {NOUNS}")
    return _named(list(items.items()), whole=whole)


def single_files(files: Sequence[tuple[PurePath, File]]) -> list[tuple[PurePath, Item]]:
    """The records of single files, each with its folder; those of one folder and stem are one.

    Args:
        files: (whole path, file).

    Raises:
        DatasetError: a file is of no modality, or two of one share a stem.
    """
    for path, _ in files:
        if path.suffix.lower() not in FILE_TYPES:
            raise DatasetError(f"{path}: is none of {', '.join(sorted(FILE_TYPES))}")
    return [(place.parent, item) for place, item in _grouped(files).items()]


def _grouped(files: Iterable[tuple[PurePath, File]]) -> dict[PurePath, Item]:
    """Place without suffix -> the record of its files; other kinds of files are left out.

    Args:
        files: (place, file).
    """
    items: dict[PurePath, Item] = {}
    for place, file in files:
        suffix, stem = file.suffix.lower(), place.with_suffix("")
        item = items.get(stem, Item(id=stem.name))
        if suffix == ".txt":
            item = replace(item, text_source=file)
        elif suffix in MEDIA_TYPES:
            name, media_type = MEDIA_TYPES[suffix]
            _only_one(item.sources.get(name), file)
            item = replace(
                item,
                sources={**item.sources, name: file},
                types={**item.types, name: media_type},
            )
        else:
            continue
        items[stem] = item
    return items


def digits() -> list[Item]:
    """scikit-learn's 1,797 handwritten digits (8 x 8, enlarged) with captions that name them.

    Raises:
        DatasetError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DatasetError("digits need scikit-learn: pip install 'braid-stream[demo]'") from error
    from PIL import Image

    data = load_digits()
    items = []
    for number, (pixels, target) in enumerate(zip(data.images, data.target, strict=True)):
        picture = Image.fromarray((pixels * (255 / 16)).astype("uint8")).resize((64, 64))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        name = DIGIT_NAMES[int(target)]
        items.append(
            Item(
                id=f"digit-{number:04d}",
                text_source=f"A handwritten {name}.",
                sources={"image": buffer.getvalue()},
                types={"image": "image/png"},
                labels={"category": name},
            )
        )
    return items


def _named(placed: Sequence[tuple[PurePath, Item]], *, whole: bool = False) -> list[Item]:
    """Give items their ids and categories from their places, `<category>/<...>/<stem>`.

    Args:
        placed: (place, item); the item's id is its stem, which may hold dots.
        whole: ids are whole paths, which depend on the item's own place only. Else the category
            stays out of the id, and equal ids (cats/001, dogs/001) get the hash of the whole path
            behind them, which does not tell the category.
    """

    def below(place: PurePath, item: Item) -> str:
        parts = place.with_name(item.id).parts
        return "/".join(parts[1:] if len(parts) > 1 else parts)

    counts = Counter(below(place, item) for place, item in placed)
    items = []
    for place, item in placed:
        id_ = place.with_name(item.id).as_posix() if whole else below(place, item)
        if not whole and counts[id_] > 1:
            id_ += "~" + hashlib.sha256(place.as_posix().encode()).hexdigest()[:8]
        labels = {"category": place.parts[0]} if len(place.parts) > 1 else {}
        items.append(replace(item, id=id_, labels=labels))
    return items


def _content(source: bytes | File | None) -> bytes | None:
    return source if source is None or isinstance(source, bytes) else source.read_bytes()


def _only_one(there: bytes | File | None, file: File) -> None:
    if there is not None:
        raise DatasetError(f"two files for one record: {there!s} and {file}")
