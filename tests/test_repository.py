"""The repository holds what it promises: one import name, a true README, files that parse."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.exceptions import TyperException

from braid.stream.cli.main import app
from tests.command_lines import check_command
from tests.conftest import LONGEST
from tests.documents import DOCS, README, blocks, commands, links, pages

ROOT = Path(__file__).parent.parent
PACKAGES = ("encoders", "index", "integrations", "stream")
MAX_LINES, MAX_LINES_OF_TESTS = 400, 500
MAX_MODULES = 20


def tracked() -> list[Path]:
    """Every file that belongs to the repository, new ones included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_files_that_run_first_are_there() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


# ---- imports


@pytest.mark.slow
def test_the_index_works_without_torch() -> None:
    """Not only our own imports: nothing that the index node's store needs loads torch."""
    names = [
        ".".join(("braid", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for file in modules("index")
    ]
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_workers_and_index_nodes_load_torch_only_with_a_model_that_needs_it() -> None:
    code = "import sys, braid.stream.worker.app, braid.stream.index_node.node\n"
    code += "print(sorted({'torch', 'transformers', 'httpx', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "package", ["braid", "braid.encoders", "braid.stream", "braid.stream.cli.main"]
)
def test_importing_a_package_does_nothing_heavy(package: str) -> None:
    heavy = {"torch", "faust", "faiss", "numpy", "redis", "httpx", "confluent_kafka"}
    code = f"import sys, {package}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


# ---- one import name


def test_the_links_of_braid_lead_to_its_packages() -> None:
    links = {path.name: path.readlink() for path in (ROOT / "braid").iterdir() if path.is_symlink()}
    assert links == {package: Path("..") / package for package in PACKAGES}


def test_every_folder_of_modules_is_a_package_of_twenty_at_most() -> None:
    folders: dict[str, set[str]] = {}
    for package in PACKAGES:
        for file in modules(package):
            folders.setdefault(str(file.parent.relative_to(ROOT)), set()).add(file.name)
    assert [folder for folder, names in folders.items() if "__init__.py" not in names] == []
    counts = {folder: len(names - {"__init__.py"}) for folder, names in folders.items()}
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES} == {}


# ---- files


def test_no_file_is_too_long() -> None:
    too_long = {}
    for file in filter(is_source, tracked()):
        count = len(file.read_text().splitlines())
        in_tests = file.is_relative_to(ROOT / "tests")
        if count > (MAX_LINES_OF_TESTS if in_tests else MAX_LINES):
            too_long[str(file.relative_to(ROOT))] = count
    assert too_long == {}


def is_source(file: Path) -> bool:
    return file.suffix in (".py", ".html", ".js", ".css", ".sh") or file.name in ("Makefile", "run")


def test_no_path_of_a_persons_machine() -> None:
    homes = re.compile("/(?:" + "|".join(["home", "root", "Users", "work"]) + r")/\w+")
    wrong = []
    for file in tracked():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        wrong += [f"{file.relative_to(ROOT)}: {result}" for result in homes.findall(text)]
    assert wrong == []


@pytest.mark.parametrize(
    "wrong", ["embedd", "embed --no-such", "retrain --seed x", "models list extra", "models --x"]
)
def test_a_wrong_command_line_would_be_noticed(wrong: str) -> None:
    with pytest.raises(TyperException):
        check_command(shlex.split(wrong))


def test_the_scripts_parse() -> None:
    subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True)
    shown = subprocess.run(
        ["make", "--dry-run", "demo", "test", "check", "clean"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "braid demo" in shown.stdout


def all_commands(command: Any, name: str = "braid") -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, below in getattr(command, "commands", {}).items():
        yield from all_commands(below, f"{name} {word}")


@pytest.mark.slow
def test_every_command_shows_an_example_that_parses() -> None:
    for name, command in all_commands(typer.main.get_command(app)):
        example = re.search(r"^ *Example: braid (.+)$", command.help or "", re.M)
        assert example is not None, f"{name} --help shows no example"
        check_command(shlex.split(example[1]))


# ---- the README and docs/


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_every_relative_link_leads_to_a_file() -> None:
    others = [path for path in ROOT.glob("*.md") if path != README]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in [*pages(), *others, ROOT / "benchmarks" / "RESULTS.md"]
        for link in links(page)
        if not re.match(r"https?://|mailto:|#", link)
        and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert broken == []


def tree() -> dict[str, str]:
    """Path -> description from the tree in docs/source-tree.md: the block with `stream/`.

    A line is a name, indented below its folder (spaces or box-drawing lines), and what it is.
    """
    (block,) = [block.code for block in blocks(DOCS / "source-tree.md")]
    listed: dict[str, str] = {}
    folders: list[tuple[int, str]] = []
    for line in block.splitlines():
        bare = re.sub("[│├└─]", " ", line)
        if not bare.strip():
            continue
        name, _, description = bare.strip().partition(" ")
        depth = len(bare) - len(bare.lstrip())
        while folders and folders[-1][0] >= depth:
            folders.pop()
        path = "".join(folder for _, folder in folders) + name
        if name in ("./", "."):
            continue
        listed[path] = description.strip()
        if name.endswith("/"):
            folders.append((depth, name))
    return listed


def test_the_tree_matches_the_disk() -> None:
    listed = tree()
    assert [path for path in listed if not (ROOT / path).exists()] == []
    unsaid = {"__init__.py", "__init__.pyi", "__main__.py", "py.typed"}
    on_disk = {
        file.relative_to(ROOT).as_posix()
        for file in tracked()
        if file.relative_to(ROOT).parts[0] in PACKAGES and file.name not in unsaid
    }
    folders = {path for path in listed if path.endswith("/") and path.rstrip("/") not in PACKAGES}
    summed_up = {
        folder for folder in folders if not any(p.startswith(folder) for p in listed if p != folder)
    }
    missing = {file for file in on_disk if not file.startswith(tuple(summed_up))} - set(listed)
    assert sorted(missing) == []
    assert [path for path, description in listed.items() if not description] == []


THE_WAY_OF_A_RECORD = [
    "stream/worker/worker.py",
    "stream/worker/source.py",
    "stream/kafka/schemas.py",
    "stream/worker/batcher.py",
    "encoders/model/torch_model.py",
    "stream/worker/outputs.py",
    "stream/worker/publisher.py",
    "stream/index_node/reader.py",
    "index/segments/live_store.py",
]


def test_the_architecture_names_files_that_exist_and_a_records_in_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\d+\. \[`([^`]+)`\]\(([^)]+)\):", text, re.M)
    assert [name for name, _ in listed] == THE_WAY_OF_A_RECORD
    assert [link for _, link in listed] == [f"../{name}" for name in THE_WAY_OF_A_RECORD]
    named = set(re.findall(r"`((?:stream|encoders|index)/[\w/.]+)`", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_the_commands_of_the_pages_exist() -> None:
    """Each `braid` line parses, each `make` line has its target. (tests/test_docs.py runs them.)"""
    lines = [
        line
        for page in pages()
        for block in blocks(page)
        if block.language == "sh"
        for line in commands(block.code)
    ]
    shown = [line for line in lines if re.match(r"([A-Z_]+=\S+ )*braid [a-z-]", line)]
    targets = [line.split()[1] for line in lines if line.startswith("make ")]
    for line in shown:
        words = shlex.split(line, comments=True)
        check_command(words[words.index("braid") + 1 :])
    assert len(shown) > 40
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test", "check"} <= set(targets)
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.M)] == []
