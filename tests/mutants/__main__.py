"""`make mutants`: changes the guarded modules one place at a time, and runs their tests each time.

A mutant survives if no test notices it. Exits with 0 if each survivor is listed with a reason in
`equivalent.toml`, else with 1.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from .operators import Mutant, mutants
from .run import ROOT, Runner
from .targets import TARGETS, Target

EQUIVALENT = Path(__file__).parent / "equivalent.toml"


def text_of(mutant: Mutant) -> str:
    """As `equivalent.toml` has it."""
    return f"{mutant.before} -> {mutant.after}"


def reasons() -> dict[str, dict[str, str]]:
    """File -> mutant -> why no test can notice it."""
    listed: dict[str, dict[str, str]] = {}
    for entry in tomllib.loads(EQUIVALENT.read_text()).get("equivalent", []):
        for text in entry["mutants"]:
            listed.setdefault(entry["file"], {})[text] = entry["reason"]
    return listed


def mutants_of(target: Target) -> list[Mutant]:
    source = (ROOT / target.file).read_text()
    made = mutants(source, target.speed_only)
    if not target.only:
        return made
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    spans = [range(c.lineno, (c.end_lineno or 0) + 1) for c in classes if c.name in target.only]
    return [mutant for mutant in made if any(mutant.line in span for span in spans)]


def examine(name: str, sample: int, seed: int, again: bool, show: bool) -> dict[str, Any]:
    """Run the mutants of one module; the figures, with the survivors and the stale reasons."""
    target = TARGETS[name]
    made = mutants_of(target)
    known = reasons().get(target.file, {})
    stale = sorted(set(known) - {text_of(mutant) for mutant in made})
    chosen = made
    if 0 < sample < len(made):
        chosen = random.Random(seed).sample(made, sample)
        chosen.sort(key=lambda mutant: mutant.line)
    began = time.monotonic()
    runner = Runner(target)
    killed = equivalent = 0
    survivors: list[str] = []
    noticed: set[str] = set()  # though listed
    lived: set[str] = set()
    for mutant in chosen:
        if text_of(mutant) in known and not again:
            equivalent += 1
        elif runner.kills(mutant):
            killed += 1
            noticed |= {text_of(mutant)} & set(known)
        elif text_of(mutant) in known:
            equivalent += 1
            lived.add(text_of(mutant))
        else:
            survivors.append(f"{target.file}:{mutant.line}: {text_of(mutant)}")
            if show:
                print(survivors[-1], flush=True)
    runner.check()
    return {
        "module": name,
        "of": len(made),
        "mutants": len(chosen),
        "killed": killed,
        "equivalent": equivalent,
        "survivors": survivors,
        "stale": [*stale, *sorted(noticed - lived)],  # one text may stand for two equal lines
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--module", action="append", choices=sorted(TARGETS), help="default: all")
    parser.add_argument("--sample", type=int, default=0, help="so many of each module; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--equivalent", action="store_true", help="run those with a reason, too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # set before torch and FAISS are imported
    figures = []
    for name in options.module or TARGETS:
        row = examine(name, options.sample, options.seed, options.equivalent, not options.json)
        figures.append(row)
        if not options.json:
            counts = f"{row['mutants']:5} mutants {row['killed']:5} killed {row['equivalent']:4}"
            print(
                f"{name:16}{counts} equivalent {len(row['survivors']):4} survivors "
                f"{row['seconds']:7.0f} s",
                flush=True,
            )
    stale = [text for row in figures for text in row["stale"]]
    left = sum(len(row["survivors"]) for row in figures)
    if options.json:
        print(json.dumps({"modules": figures, "ok": not (left or stale)}, indent=1))
    else:
        for text in stale:
            print(f"stale in {EQUIVALENT.name}: {text}")
        print(f"{left} survivors without a reason" if left else "no survivor without a reason")
    return 1 if left or stale else 0


if __name__ == "__main__":
    sys.exit(main())
