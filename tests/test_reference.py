"""The generated pages of `docs/reference/`, and the project files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from braid.stream.settings import Settings
from braid.stream.settings.group import Group

ROOT = Path(__file__).parent.parent
SCHEMAS = (
    *("record", "part", "vector", "progress", "prediction"),
    *("dead-letter-headers", "statistics", "models"),
)
GENERATED_DATA = ("asyncapi.json", *(f"schemas/{name}.json" for name in SCHEMAS))
GENERATED = (
    *("acls.md", "benchmarks.md", "cli.md", "http-api.md"),
    *("metrics.md", "settings.md", "topics.md"),
)


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_reference_is_that_of_the_code(tmp_path: Path) -> None:
    """Each page is what `make reference` writes now; a page that differs is named."""
    done = check(ROOT / "docs" / "reference")
    assert done.returncode == 0, done.stderr
    (tmp_path / "schemas").mkdir()
    for name in (*GENERATED, *GENERATED_DATA):
        (tmp_path / name).write_text((ROOT / "docs" / "reference" / name).read_text())
    changed = tmp_path / "settings.md"
    changed.write_text(changed.read_text().replace("8077", "8078"))
    (tmp_path / "cli.md").unlink()
    done = check(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}: settings.md, cli.md out of date: run make reference\n"


def described(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            yield from described(field.annotation, f"{name}.")
        else:
            yield f"{prefix}{name}", field.description


def test_every_setting_has_a_description() -> None:
    assert [name for name, description in described(Settings) if not description] == []


def test_every_page_of_the_reference_is_in_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    pages = [path.name for path in (ROOT / "docs" / "reference").glob("*.md")]
    assert {*GENERATED, "index.md", "python-api.md"} == set(pages)
    assert [name for name in pages if f"reference/{name}\n" not in text] == []


# ---- project files


def test_the_hooks_of_pre_commit_are_the_checks_of_make() -> None:
    """All local, so that nothing is fetched; every program of `make check`."""
    loaded = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in loaded["repos"]] == ["local"]
    entries = [hook["entry"] for hook in loaded["repos"][0]["hooks"]]
    programs = {entry.split()[0].removeprefix(".venv/bin/") for entry in entries}
    recipe = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    checks = {line.split()[0].removeprefix("$(BIN)/") for line in recipe.splitlines()[1:]}
    assert programs == checks


def test_the_workflow_runs_what_ci_runs() -> None:
    loaded = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in loaded["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert loaded["permissions"] == {"contents": "read"}


def test_every_metric_and_every_field_of_the_http_api_has_a_description() -> None:
    """The last cell of each row of the tables; parts of an upload are those of a query."""
    for name in ("http-api.md", "metrics.md", "settings.md", "topics.md"):
        text = (ROOT / "docs" / "reference" / name).read_text()
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        assert len(rows) > 20
        cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
        assert [row for row in cells if not row[-1] or row[-1] == "."] == []
