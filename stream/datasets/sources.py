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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from braid.encoders.types import Label

from ..errors import StreamError
from .apt import AptError, Progress, fetch_package

PACKAGE = "tuxpaint-stamps-default"
# Which language's spoken caption a stamp gets: the first of these that it has, the most complete
# first, so that nearly all are in one language.
LANGUAGES = ("fr", "es", "ru", "ca", "ro", "bg", "el", "be", "da", "lt", "nl", "ml")

IMAGE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
}
AUDIO_TYPES = {
    ".ogg": "audio/ogg",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
}
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class DatasetError(StreamError):
    """A data set cannot be had or read; the message says what is missing or wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One record to be: what a data set knows of it, before it gets a time stamp.

    `image_source` and `audio_source` are the encoded file's bytes or the path to read them from.
    """

    id: str
    text: str | None = None
    image_source: bytes | Path | None = None
    audio_source: bytes | Path | None = None
    image_type: str | None = None
    audio_type: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)

    @property
    def image(self) -> bytes | None:
        return _content(self.image_source)

    @property
    def audio(self) -> bytes | None:
        return _content(self.audio_source)

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
    placed: list[tuple[Path, Item]] = []
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
            text=text,
            image_source=picture,
            image_type="image/png",
            audio_source=sound,
            audio_type="audio/ogg" if sound else None,
        )
        placed.append((picture.relative_to(root), item))
    return _named(placed)


def folder(path: Path) -> list[Item]:
    """The records in a folder laid out as `<category>/<...>/<stem>.<suffix>`.

    Files of one folder and stem form one record: its `.txt`, one picture (png, jpg, jpeg, webp)
    and one sound (ogg, wav, flac, mp3), any of them missing. Files at the top have no category.
    Other and hidden files are left out.

    Raises:
        DatasetError: not a folder, or nothing in it is a record's, or two pictures (or sounds)
            share a stem.
    """
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder")
    items: dict[Path, Item] = {}
    for file in sorted(path.rglob("*")):
        place = file.relative_to(path)
        suffix = file.suffix.lower()
        if any(part.startswith(".") for part in place.parts) or not file.is_file():
            continue
        stem = place.with_suffix("")
        item = items.get(stem, Item(id=stem.name))
        if suffix == ".txt":
            item = replace(item, text=file.read_text("utf-8", "replace").strip())
        elif suffix in IMAGE_TYPES:
            _only_one(item.image_source, file)
            item = replace(item, image_source=file, image_type=IMAGE_TYPES[suffix])
        elif suffix in AUDIO_TYPES:
            _only_one(item.audio_source, file)
            item = replace(item, audio_source=file, audio_type=AUDIO_TYPES[suffix])
        else:
            continue
        items[stem] = item
    if not items:
        raise DatasetError(f"{path} holds no .txt, picture or sound")
    return _named(list(items.items()))


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
                text=f"A handwritten {name}.",
                image_source=buffer.getvalue(),
                image_type="image/png",
                labels={"category": name},
            )
        )
    return items


def _named(placed: Sequence[tuple[Path, Item]]) -> list[Item]:
    """Give items their ids and categories from their places, `<category>/<...>/<stem>`.

    The category stays out of the id. Where that makes two ids equal (cats/001, dogs/001), each
    gets the hash of its whole path behind it, so that an id depends on its own place only.
    """

    def below(place: Path) -> str:
        parts = place.with_suffix("").parts
        return "/".join(parts[1:] if len(parts) > 1 else parts)

    counts = Counter(below(place) for place, _ in placed)
    items = []
    for place, item in placed:
        id_ = below(place)
        if counts[id_] > 1:
            id_ += "~" + hashlib.sha256(place.as_posix().encode()).hexdigest()[:8]
        labels = {"category": place.parts[0]} if len(place.parts) > 1 else {}
        items.append(replace(item, id=id_, labels=labels))
    return items


def _content(source: bytes | Path | None) -> bytes | None:
    return source.read_bytes() if isinstance(source, Path) else source


def _only_one(there: bytes | Path | None, file: Path) -> None:
    if there is not None:
        raise DatasetError(f"two files for one record: {there!s} and {file}")
