"""`braid models`: what a version's story tells, what differs, what goes, and what may not serve."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from braid.encoders.embedder import load
from braid.encoders.errors import CheckpointError
from braid.encoders.manifest import sha256_of
from braid.stream.cli.main import app
from braid.stream.errors import RegistryError
from braid.stream.registry.generations import GenerationRecord, GenerationRecords
from braid.stream.registry.versions import TOO_LITTLE, Registry, status_line
from braid.stream.trainer.runs import Runs
from tests.stream.trainers import run, state

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The champion braid-0002, its predecessor, and two candidates, one of another space."""
    home = tmp_path_factory.mktemp("four")
    run(home)
    run(home, heads_only=True, seed=1, promote=True, force=True)
    run(home, heads_only=True, seed=2)
    run(home, seed=3, from_scratch=True)
    return home


@pytest.fixture
def home(four: Path, tmp_path: Path) -> Path:
    shutil.copytree(four, tmp_path / "home")
    return tmp_path / "home"


def braid(home: Path, *arguments: str) -> Any:
    """A command in this process; its JSON, or what it prints."""
    done = CliRunner().invoke(app, ["--home", str(home), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def altered(folder: Path, **fields: Any) -> None:
    """Change fields of a manifest, as a hand or another program might."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def gives_nan(folder: Path) -> None:
    """Its weights make NaN, and its sums are right: it was written so."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    key = next(name for name in tensors if name.startswith("projectors.text"))
    tensors[key] = torch.full_like(tensors[key], math.nan)
    save_file(tensors, path)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    altered(folder, files={**files, path.name: sha256_of(path)})


@pytest.mark.slow
def test_the_story_tells_where_a_version_came_from_and_how_it_was_judged(home: Path) -> None:
    story = braid(home, "models", "show", "2")
    run_id = Runs(home / "training").resolve("braid-0002").id
    for part in (
        "braid-0002, version 2, made 20",
        "it is the champion",
        "champion number 2 from 20",
        "encoders text: hashed, image: small-cnn",
        "fusion mean, decision weighted, tasks colour (classification)",
        "started from braid-0001",
        f"48 records of records (run {run_id}), 0 unreadable, 0 deleted",
        "offsets 0: 0 to 16, 1: 0 to 16, 2: 0 to 16",
        "37 to train on; left out: 8 judge split",
        "8 epochs, loss ",
        "against braid-0001 on 8 judge records",
        "challenger",
        "compatibility: champion braid-0001, choice same space",
        "colour, by what is present: ",
        "recall text->image: @1 ",
    ):
        assert part in story, story
    page = Path(story.rpartition("plots: ")[2].strip())
    assert page == home / "models" / "versions" / "braid-0002.html"
    plots = page.read_text()
    assert plots.count("<svg") >= 5
    assert "Loss by epoch" in plots
    assert "Judged against braid-0001" in plots
    assert "not at all: there was no champion" in braid(home, "models", "show", "1")
    told = braid(home, "models", "show", "2", "--json")
    assert told["verdict"]["champion"] == told["parent"] == "braid-0001"
    assert told["choices"] == [], "its vectors are the champion's: nothing was tried"
    judged = braid(home, "models", "show", "4", "--json")
    assert [choice["way"] for choice in judged["choices"]] == ["same space", "new space"]
    assert judged["choices"][0]["ratio"] == judged["compatibility"]["tried"][0]["ratio"]
    assert judged["choices"][0]["accuracy_gain"] is not None
    assert state(home)["versions"] == [f"braid-{n:04d}" for n in (1, 2, 3, 4)], "a page is none"


def test_the_story_has_what_each_choice_of_a_space_costs(home: Path) -> None:
    numbers = {"ratio": 0.5, "share": 0.6, "recall": 0.75, "cost": 0.125, "re_embedded": "none"}
    fitted = {**numbers, "choice": "adapter", "kind": "procrustes"}
    tried = [
        {**numbers, "choice": "same space", "passed": False, "failed": ["ratio", "share"]},
        {**fitted, "maps": "the new model's vectors", "passed": True, "failed": []},
        {**fitted, "maps": "stored vectors", "passed": True, "failed": []},
        {
            "choice": "new space",
            "recall": 0.875,
            "cost": 0.0,
            "passed": True,
            "re_embedded": "every record",
        },
    ]
    gates = [
        {"metric": "accuracy colour: text", "difference": 0.5, "passed": True},
        {"metric": "accuracy colour: as it comes", "difference": 0.25, "passed": True},
        {"metric": "accuracy shape: as it comes", "difference": -0.125, "passed": True},
    ]
    altered(
        home / "models" / "versions" / "braid-0003",
        verdict={"passed": True, "decision": "passed", "gates": gates},
        compatibility={
            "choice": "adapter",
            "tried": tried,
            "adapter": {"kind": "procrustes", "maps": "the new model's vectors"},
        },
    )
    lines = [" ".join(line.split()) for line in braid(home, "models", "show", "3").splitlines()]
    for line in (
        "way R share of old recall recall cost accuracy gain re-embedded",
        "same space 0.5000 0.6000 0.7500 0.1250 0.0625 none failed: ratio, share",
        "adapter, procrustes, the new model's vectors 0.5000 0.6000 0.7500 0.1250 0.0625 none "
        "chosen",
        "adapter, procrustes, stored vectors 0.5000 0.6000 0.7500 0.1250 0.0625 none passed",
        "new space - - 0.8750 0.0000 0.0625 every record passed",
    ):
        assert line in lines, lines
    told = braid(home, "models", "show", "3", "--json")["choices"]
    assert [choice["verdict"] for choice in told] == [
        "failed: ratio, share",
        "chosen",
        "passed",
        "passed",
    ]
    assert told[0]["recall_cost"] == 0.125


def test_what_differs_between_two_versions(home: Path) -> None:
    differences = braid(home, "models", "diff", "2", "4", "--json")
    assert not differences["same_space"]
    assert differences["metrics"]["seed"] == [1, 3]
    assert differences["facts"]["parent"] == ["braid-0001", None]
    assert differences["config"] == {}
    assert any(path.startswith("colour.subsets.text.") for path in differences["calibration"])
    printed = braid(home, "models", "diff", "2", "4")
    assert "braid-0002 and braid-0004: different spaces" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["seed", "1", "3"] in rows
    assert ["started", "from", "braid-0001", "-"] in rows


def test_a_difference_fits_on_a_screen_unless_all_is_asked_for(home: Path) -> None:
    short = braid(home, "models", "diff", "2", "4").splitlines()
    every = braid(home, "models", "diff", "2", "4", "--all").splitlines()
    assert len(short) <= 20
    assert len(every) > 60
    assert any("--all" in line for line in short)
    assert not any("losses" in line for line in short)
    assert any("losses" in line for line in every)


def test_a_difference_shows_nan_and_what_one_version_lacks(home: Path) -> None:
    same = {f"m{n:02d}": 0.5 for n in range(30)}
    for name, metrics in (
        ("braid-0001", {"both": math.nan, "lost": 0.25, "broken": 0.5, "list": [math.nan]}),
        ("braid-0003", {"both": math.nan, "broken": math.nan, "new": 0.75, "list": [math.nan]}),
    ):
        shift = 0.4 * (name == "braid-0003")
        moved = {key: value + shift for key, value in same.items()}
        altered(home / "models" / "versions" / name, metrics={**moved, **metrics})
    printed = braid(home, "models", "diff", "1", "3", "--all").partition("\nmetrics\n")[2]
    shown = [" ".join(line.split()) for line in printed.partition("\n\n")[0].splitlines()]
    for line in ("broken 0.5000 nan +nan", "lost 0.2500 -", "new - 0.7500"):
        assert line in shown, shown
    assert not any(line.startswith(("both", "list")) for line in shown)
    changes = braid(home, "models", "diff", "1", "3", "--json")
    assert changes["metrics"]["broken"] == [0.5, None]


def test_the_generation_that_is_built_is_named(home: Path) -> None:
    registry = Registry(home / "models")
    space = registry.manifest("braid-0004").space
    entry = GenerationRecord(generation="g0003", model="braid-0004", space=space, state="building")
    GenerationRecords(registry.log).put(entry)
    listed = CliRunner().invoke(app, ["--home", str(home), "models", "list"])
    assert listed.exit_code == 0
    assert "building: serves when g0003 is built" in listed.stdout
    assert listed.stdout.count("braid-000") == 4
    assert len(braid(home, "models", "list", "--json")) == 4
    rows = braid(home, "models", "generations", "--json")
    assert [row["generation"] for row in rows] == ["g0003"]


def test_the_list_and_retrain_use_the_same_words(home: Path) -> None:
    verdicts = {
        "braid-0001": {},
        "braid-0002": {"passed": False, "decision": "failed", "reason": "failed: recall"},
        "braid-0003": {"passed": False, "decision": TOO_LITTLE, "reason": "8 records"},
        "braid-0004": {"passed": False, "decision": "failed", "reason": "failed: accuracy"},
    }
    for name, verdict in verdicts.items():
        altered(home / "models" / "versions" / name, verdict=verdict)
    rows = {row["name"]: row for row in braid(home, "models", "list", "--json")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "braid-0001": "candidate",
        "braid-0002": "champion",  # a person insisted
        "braid-0003": "not enough evidence",
        "braid-0004": "refused",
    }
    listed = braid(home, "models", "list")
    for words in (
        "candidate, waits: braid models promote 1\n",
        "champion\n",
        "not enough evidence: 8 records; "
        "braid models canary 3, or braid models promote 3 --force\n",
        "refused: failed: accuracy\n",
    ):
        assert words in listed
    registry = Registry(home / "models")
    for name, row in rows.items():
        manifest, serves = registry.manifest(name), name == "braid-0002"
        assert row["line"] == status_line(manifest, serves=serves)  # what `retrain` prints


def test_what_gc_keeps_and_what_it_removes(home: Path) -> None:
    collected = braid(home, "models", "gc", "--keep", "0", "--dry-run", "--json")
    assert collected["versions"] == ["braid-0003", "braid-0004"]
    assert collected["kept"] == {"braid-0001": "champion number 1", "braid-0002": "the champion"}
    assert [Runs(home / "training").read(id_).name for id_ in collected["windows"]] == [
        "braid-0003",
        "braid-0004",
    ]
    assert collected["bytes"] > 100_000
    assert len(state(home)["versions"]) == 4, "a dry run removes nothing"
    assert braid(home, "models", "gc", "--keep", "1", "--json")["versions"] == ["braid-0003"]
    assert braid(home, "models", "gc", "--keep", "0", "--json")["versions"] == ["braid-0004"]
    assert state(home)["versions"] == ["braid-0001", "braid-0002"]
    assert "braid-0003" not in [one.name for one in Runs(home / "training").all()]
    registry = Registry(home / "models")
    assert registry.next() == ("braid-0005", 5), "a number is given once"


def test_gc_keeps_the_last_champion_of_a_generation_until_that_is_dropped(home: Path) -> None:
    registry = Registry(home / "models")
    generation_records = GenerationRecords(registry.log)
    registry.promote("braid-0004", generation="g0002")
    registry.promote("braid-0002", generation="g0003")
    registry.promote("braid-0003", generation="g0003")
    asked = ("models", "gc", "--keep", "0", "--champions", "2", "--dry-run", "--json")
    collected = braid(home, *asked)
    assert collected["versions"] == ["braid-0001"]
    assert collected["kept"]["braid-0004"] == "the last champion of generation g0002"
    other = registry.manifest("braid-0004").space
    for state_, gone in (("grace", ["braid-0001"]), ("dropped", ["braid-0001", "braid-0004"])):
        generation_records.put(
            GenerationRecord(generation="g0002", model="braid-0004", space=other, state=state_)
        )
        assert braid(home, *asked)["versions"] == gone


@pytest.mark.slow
def test_gc_keeps_what_an_unfinished_run_needs_and_a_repeat_uses(home: Path) -> None:
    def die(stage: str, *_: object) -> None:
        if stage == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(home, die, heads_only=True, seed=2, window="braid-0003")
    collected = braid(home, "models", "gc", "--keep", "0", "--json")
    used = Runs(home / "training").resolve("braid-0005").window_of
    assert used not in collected["windows"]
    assert run(home, heads_only=True, seed=2, window="braid-0003").resumed


@pytest.mark.slow
def test_a_damaged_version_is_refused_and_hides_no_other(home: Path) -> None:
    folder = home / "models" / "versions" / "braid-0003"
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    registry = Registry(home / "models")
    with pytest.raises(RegistryError, match=r"braid-0003 is damaged .* sha256 \w+, wanted \w+"):
        registry.promote("braid-0003", generation="g0001")
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        load(folder, device="cpu")
    (folder / "manifest.json").write_text("{")
    rows = braid(home, "models", "list", "--json")
    assert [row["name"] for row in rows] == [f"braid-{n:04d}" for n in (1, 2, 3, 4)]
    assert "not JSON" in rows[2]["damaged"]
    assert run(home, heads_only=True, seed=9).manifest.name == "braid-0005"
    assert state_champion(home) == "braid-0002"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": 32}, "dim is 32, the configuration says 64"),
        ({"files": {"model.safetensors": "0" * 64}}, r"sha256 \w+, wanted 0{64}"),
        ({"config_sha256": "0" * 64}, "the configuration does not fit its sha256"),
        ({"format": 9}, "format 9, this code reads"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    home: Path, fields: dict[str, Any], words: str
) -> None:
    folder = home / "models" / "versions" / "braid-0003"
    altered(folder, **fields)
    with pytest.raises(RegistryError, match=words):
        Registry(home / "models").promote("braid-0003", generation="g0001")
    with pytest.raises(CheckpointError, match=words):
        load(folder, device="cpu")
    assert state_champion(home) == "braid-0002"


@pytest.mark.slow
def test_a_version_that_gives_nan_is_refused(home: Path) -> None:
    folder = home / "models" / "versions" / "braid-0003"
    gives_nan(folder)
    with pytest.raises(CheckpointError, match="not finite"):
        load(folder, device="cpu").check()
    with pytest.raises(RegistryError, match=r"braid-0003 cannot serve: .* not finite"):
        braid(home, "models", "promote", "3", "--force")
    assert state_champion(home) == "braid-0002"


def state_champion(home: Path) -> str:
    champion = Registry(home / "models").champion()
    assert champion is not None
    return champion.name
