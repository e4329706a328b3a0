"""The repository holds what it promises: one import name, a true README, files that parse."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.exceptions import TyperException

from braid.stream.cli.main import app
from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
PACKAGES = ("encoders", "index", "stream")
COMPOSE = ("docker-compose.yml", "docker-compose.gpu.yml")
MAX_LINES = 500
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
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("package", ["braid", "braid.encoders", "braid.stream"])
def test_importing_a_package_does_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(sorted({{'torch', 'faust', 'faiss'}} & set(sys.modules)))"
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
    lengths = {file: len(file.read_text().splitlines()) for file in tracked() if is_source(file)}
    assert {str(file): count for file, count in lengths.items() if count > MAX_LINES} == {}


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


# ---- Docker


def compose(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def check_command(arguments: list[str]) -> None:
    """Parse a command line as `braid` would, without running it.

    Raises typer's UsageError: no such command or option, or a value that does not fit.
    """
    command: Any = typer.main.get_command(app)  # of click's classes, which typer brings itself
    parent, rest = None, list(arguments)
    while True:
        if rest[-1:] == ["--help"]:
            rest = rest[:-1]
            if not rest:
                return
        context = command.make_context(command.name, rest, parent=parent)
        if not hasattr(command, "commands"):
            return
        name, result, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert name is not None
        command, parent = result, context


@pytest.mark.parametrize(
    "wrong", ["embedd", "embed --no-such", "retrain --seed x", "models list extra", "models --x"]
)
def test_a_wrong_command_line_would_be_noticed(wrong: str) -> None:
    with pytest.raises(TyperException):
        check_command(shlex.split(wrong))


def test_compose_services_run_commands_that_exist() -> None:
    services = compose("docker-compose.yml")["services"]
    ours = {name: service for name, service in services.items() if "build" in service}
    assert set(ours) == {"embed", "index", "trainer"}
    for service in ours.values():
        check_command([str(part) for part in service["command"]])
        test = service["healthcheck"]["test"]
        if test[1] == "braid":
            check_command(test[2:])


def test_compose_is_whole() -> None:
    whole = compose("docker-compose.yml")
    services = whole["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), f"{name} would listen on every address"
        if "profiles" not in service:
            assert service["healthcheck"]["test"], f"{name} has no health check"
        assert set(service.get("depends_on", [])) <= set(services)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in whole["volumes"] or (ROOT / source).exists(), f"{name}: {source}"
    assert set(compose("docker-compose.gpu.yml")["services"]) <= set(services)


def test_only_the_gpu_override_asks_for_a_gpu() -> None:
    assert "nvidia" not in (ROOT / "docker-compose.yml").read_text()
    embed = compose("docker-compose.gpu.yml")["services"]["embed"]
    (device,) = embed["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "gpu" in embed["build"]["args"]["EXTRAS"].split()


def test_docker_accepts_the_compose_files() -> None:
    """Where the docker command has its compose plugin; it needs no engine for this."""
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("the docker command or its compose plugin is not installed")
    for names in (COMPOSE[:1], COMPOSE):
        files = [part for name in names for part in ("-f", name)]
        subprocess.run([docker, "compose", *files, "config", "--quiet"], cwd=ROOT, check=True)


def test_the_image_installs_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    default = re.search(r'^ARG EXTRAS="([^"]+)"', (ROOT / "Dockerfile").read_text(), re.M)
    made = re.search(r"^EXTRAS \?= (\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert default is not None
    assert made is not None
    assert set(default[1].split()) <= set(extras)
    assert set(made[1].split(",")) <= set(extras)
    for copied in re.findall(r"^COPY (\S+) \S+$", (ROOT / "Dockerfile").read_text(), re.M):
        assert (ROOT / copied).exists()


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


# ---- the README


def blocks() -> list[str]:
    """The README's fenced code blocks."""
    return re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)


def tree() -> dict[str, str]:
    """Path -> description from the README's tree: the block with a line for `stream/`.

    A line is a name, indented below its folder (spaces or box-drawing lines), and what it is.
    """
    block = next((b for b in blocks() if re.search(r"^[\s│├└─]*stream/(\s|$)", b, re.M)), None)
    assert block is not None, "the README has no tree: a code block with a line for stream/"
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


def test_the_readmes_tree_matches_the_disk() -> None:
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
def test_the_readmes_commands_exist() -> None:
    """Each `braid` line parses, each `make` line has its target. (Tests of the stream run them.)"""
    lines = [
        line.strip().removeprefix("$ ")
        for block in blocks()
        for line in block.replace("\\\n", " ").splitlines()
    ]
    commands = [line for line in lines if re.match(r"([A-Z_]+=\S+ )*braid [a-z-]", line)]
    targets = [line.split()[1] for line in lines if re.match(r"make [a-z]+", line)]
    assert commands, "the README shows no braid command"
    for line in commands:
        words = shlex.split(line, comments=True)
        check_command(words[words.index("braid") + 1 :])
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= set(targets)
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.M)] == []
