"""The mutations themselves, the list of equivalent ones, and one run over a small module."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.mutants.__main__ import mutants_of, reasons, text_of
from tests.mutants.operators import mutants
from tests.mutants.run import ROOT
from tests.mutants.targets import TARGETS


def after(source: str, *speed_only: str) -> list[str]:
    return [mutant.after for mutant in mutants(source, speed_only)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a + b", ["x = a - b"]),
        ("x = (a\n  * b)", ["x = (a / b)"]),
        ("x = f() // g", ["x = f() / g"]),
        ("x += a", ["x -= a", "pass"]),
        ("x = a < b", ["x = a <= b"]),
        ("x = a < b == c", ["x = a <= b == c", "x = a < b != c"]),
        ("x = a is not b", ["x = a is b"]),
        ("x = a not in b", ["x = a in b"]),
        ("x = a and b or c", ["x = a and b and c", "x = a or b or c"]),
        ("x = not a", ["x = a"]),
        ("x = -a", ["x = a"]),
        ("x = 3", ["x = 4", "x = 2"]),
        ("x = 0.5", ["x = 1.5", "x = -0.5"]),
        ("x = True", ["x = False"]),
        ("x = max(a, b)", ["x = min(a, b)"]),
        ("x = np.any(a)", ["x = np.all(a)"]),
        ("if a:\n    f()", ["if not (a):", "pass"]),
        ("x = [a for a in b if a]", ["x = [a for a in b if not (a)]"]),
        ("def f():\n    return a", ["return None"]),
        ("x.a = b", ["pass"]),
        ("raise ValueError(1 + 1)", ["pass"]),
        ("assert a > b, 1 + 1", ["pass", "assert a >= b, 1 + 1"]),
    ],
)
def test_an_operator_changes_one_place(source: str, expected: list[str]) -> None:
    assert after(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""1 + 1"""',
        "def f():\n    return None",
        'x = f"{a + 1}"',
        "log.info('%s', a + 1)",
        "def f(a: 'b < c', b: Literal[1]) -> Literal[2]: ...",
        "@dataclass(frozen=True)\nclass A:\n    x: int = field(init=False)",
        "assert isinstance(a, b)",
        "assert a is not None",
        "Scalar = str | int",
        "for a in zip(b, c, strict=True): ...",
        "x = a  # + 1",
    ],
)
def test_what_no_test_observes_is_not_changed(source: str) -> None:
    assert after(source) == []


def test_constants_of_speed_are_not_changed_and_the_ways_they_select_are() -> None:
    source = "FEW = 5\nif a + 1 < FEW:\n    f()"
    assert after(source, "FEW") == ["if not (a + 1 < FEW):", "pass"]
    assert len(after(source)) > 2


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_each_mutant_of_a_module_is_another_module_and_compiles(name: str) -> None:
    source = (ROOT / TARGETS[name].file).read_text()
    plain = ast.unparse(ast.parse(source))
    made = mutants_of(TARGETS[name])
    assert made
    for mutant in made[:: 1 + len(made) // 20]:
        tree = mutant.tree(source)
        compile(tree, name, "exec")
        assert ast.unparse(tree) != plain
    for test in TARGETS[name].tests:
        assert (ROOT / test.split("::")[0]).is_file()


def test_each_reason_is_of_a_mutant_that_there_is() -> None:
    """After a change of a line the mutants of the line are judged anew."""
    by_file = {target.file: target for target in TARGETS.values()}
    for file, listed in reasons().items():
        assert set(listed) - {text_of(mutant) for mutant in mutants_of(by_file[file])} == set()
        assert all(reason.strip() for reason in listed.values())


@pytest.mark.slow
def test_the_command_finds_no_survivor_in_the_splits() -> None:
    command = [sys.executable, "-m", "tests.mutants", "--module", "splits", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(done.stdout)["modules"]
    assert row["survivors"] == row["stale"] == []
    assert row["killed"] > 10
    assert row["killed"] + row["equivalent"] == row["mutants"]
