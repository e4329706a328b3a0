"""Folders, stamps and digits become items with ids that do not tell the label."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from braid.stream.datasets.sources import (
    DatasetError,
    default_cache,
    digits,
    folder,
    held_out,
    stamps,
)


def write(path: Path, content: bytes | str = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fake_stamps(root: Path) -> None:
    koala = root / "animals" / "marsupials" / "koala"
    write(koala.with_suffix(".png"), b"koala picture")
    write(koala.with_suffix(".txt"), "A koala.\nfr.utf8=Un koala.\n")
    for tag in ("ru", "fr", "es"):
        write(koala.with_name(f"koala_desc_{tag}.ogg"), f"koala in {tag}")
    write(koala.with_name("koala.ogg"), b"its call, not a spoken caption")
    write(koala.with_name("koala_mirror.png"))
    write(root / "food" / "pizza.png")
    write(root / "food" / "pizza.txt", "A pizza.")
    write(root / "food" / "bread.png")
    write(root / "food" / "bread.txt", "Bread.")
    write(root / "food" / "bread_desc_ca.ogg")
    write(root / "people" / "fireman.png")
    write(root / "people" / "fireman.txt", "A fireman.")
    write(root / "military" / "fireman.png")
    write(root / "military" / "fireman.txt", "A fireman.")


def test_stamps_are_read_by_the_rules(tmp_path: Path) -> None:
    fake_stamps(tmp_path / "stamps")
    items = {item.id: item for item in stamps(tmp_path)}
    assert len(items) == 5
    koala = items["marsupials/koala"]
    assert koala.text == "A koala."
    assert (koala.content("image"), koala.types["image"]) == (b"koala picture", "image/png")
    assert (koala.content("audio"), koala.types["audio"]) == (b"koala in fr", "audio/ogg")
    assert koala.category == "animals"
    assert items["pizza"].content("audio") is None
    assert items["bread"].sources["audio"] == tmp_path / "stamps" / "food" / "bread_desc_ca.ogg"
    firemen = [item for id_, item in items.items() if id_.startswith("fireman~")]
    assert {item.category for item in firemen} == {"people", "military"}
    assert not any(category in id_ for id_ in items for category in ("people", "military", "food"))


def test_the_held_out_fifth_is_fixed() -> None:
    ids = [f"thing/{number}" for number in range(2000)]
    share = sum(map(held_out, ids)) / len(ids)
    assert 0.17 < share < 0.23
    # fixed: the same in every version and on every machine
    assert [id_ for id_ in ids[:20] if held_out(id_)] == HELD_OUT_OF_TWENTY


HELD_OUT_OF_TWENTY = ["thing/1", "thing/5", "thing/6", "thing/8", "thing/12", "thing/13"]


def test_a_folder_gives_one_record_a_stem(tmp_path: Path) -> None:
    write(tmp_path / "cats" / "indoors" / "tom.txt", " A grey cat.\nAsleep. \n")
    write(tmp_path / "cats" / "indoors" / "tom.JPG", b"picture")
    write(tmp_path / "cats" / "indoors" / "tom.wav", b"sound")
    write(tmp_path / "cats" / "001.png")
    write(tmp_path / "dogs" / "001.png")
    write(tmp_path / "loose.webp")
    write(tmp_path / "README.md")
    write(tmp_path / ".hidden" / "x.txt")
    items = {item.id: item for item in folder(tmp_path)}
    tom = items.pop("indoors/tom")
    assert tom.text == "A grey cat.\nAsleep."
    assert (tom.content("image"), tom.types["image"]) == (b"picture", "image/jpeg")
    assert (tom.content("audio"), tom.types["audio"]) == (b"sound", "audio/wav")
    assert tom.category == "cats"
    loose = items.pop("loose")
    assert loose.category is None
    assert loose.text is None
    assert {item.category for item in items.values()} == {"cats", "dogs"}
    assert all(id_.startswith("001~") and len(id_) == 12 for id_ in items)


def test_whole_paths_are_ids_that_no_other_file_changes(tmp_path: Path) -> None:
    for name in ("a.b.png", "a.c.png", "cats/001.png", "cats/v1.2/tom.txt", "x/y/z.txt"):
        write(tmp_path / name)
    ids = {"a.b", "a.c", "cats/001", "cats/v1.2/tom", "x/y/z"}
    assert {item.id for item in folder(tmp_path, whole=True)} == ids
    for name in ("dogs/001.png", "x/x/y/z.txt", "w/x/y/z.txt"):
        write(tmp_path / name)
    added = {"dogs/001", "x/x/y/z", "w/x/y/z"}
    items = folder(tmp_path, whole=True)
    assert sorted(item.id for item in items) == sorted(ids | added)
    assert {item.category for item in items} == {None, "cats", "dogs", "x", "w"}


def test_dotted_stems_are_kept_below_the_category(tmp_path: Path) -> None:
    write(tmp_path / "cats" / "a.b.png")
    write(tmp_path / "cats" / "a.c.png")
    assert {item.id for item in folder(tmp_path)} == {"a.b", "a.c"}


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "notes.md")
    with pytest.raises(DatasetError, match="holds no"):
        folder(tmp_path)
    with pytest.raises(DatasetError, match="is not a folder"):
        folder(tmp_path / "nowhere")
    write(tmp_path / "a" / "x.png")
    write(tmp_path / "a" / "x.jpg")
    with pytest.raises(DatasetError, match="two files for one record"):
        folder(tmp_path)


def test_digits_are_pictures_with_captions() -> None:
    items = digits()
    assert len(items) == 1797
    assert len({item.id for item in items}) == 1797
    assert len({item.category for item in items}) == 10
    zero = items[0]
    assert (zero.text, zero.category) == ("A handwritten zero.", "zero")
    picture = zero.content("image")
    assert picture is not None
    assert Image.open(io.BytesIO(picture)).size == (64, 64)


def program(folder: Path, name: str, script: str) -> None:
    write(folder / name, f"#!/bin/sh\n{script}\n").chmod(0o755)


def test_stamps_without_apt_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(DatasetError, match="apt-get is not on this machine"):
        stamps(tmp_path)


def test_stamps_that_apt_cannot_get_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "apt-get", "echo 'E: no such host' >&2; exit 100")
    program(tmp_path / "bin", "dpkg-deb", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with pytest.raises(DatasetError, match="no such host"):
        stamps(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")
def test_stamps_come_out_of_the_package_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real package, made here, brought by a stand-in for apt-get without package lists."""
    source = tmp_path / "source"
    fake_stamps(source / "usr" / "share" / "tuxpaint" / "stamps")
    fields = ("Package: x", "Version: 1", "Architecture: all", "Maintainer: x <x@x.x>")
    write(source / "DEBIAN" / "control", "\n".join([*fields, "Description: x", ""]))
    package = tmp_path / "x.deb"
    subprocess.run(["dpkg-deb", "-b", source, package], check=True, capture_output=True)
    script = f"""
        echo "$*" >> {tmp_path}/calls
        case "$*" in
            *Dir::State::Lists*update) : > {tmp_path}/updated ;;
            *Dir::State::Lists*) [ -e {tmp_path}/updated ] || exit 100 ;;
            *) echo 'E: Unable to locate package' >&2; exit 100 ;;
        esac
        case "$*" in
            *--print-uris*) echo "'file:x' x.deb {package.stat().st_size} SHA256:0" ;;
            *download*) cp {package} . ;;
        esac
    """
    program(tmp_path / "bin", "apt-get", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    told: list[tuple[str, int, int]] = []
    items = stamps(tmp_path / "cache", lambda *step: told.append(step))
    assert len(items) == 5
    size = package.stat().st_size
    assert ("downloading", size, size) in told
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["stamps"]
    (tmp_path / "calls").unlink()
    assert stamps(tmp_path / "cache") == items
    assert not (tmp_path / "calls").exists()


def test_the_cache_can_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAID_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("BRAID_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "braid"
