"""The JavaScript client in Node on a real query service, and its types in TypeScript's compiler."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from braid.index.client import Client
from braid.index.service.limits.auth import ApiKeys
from tests.conftest import missing
from tests.documents import ROOT, blocks
from tests.index.conftest import IDS, Node, serving
from tests.index.oracle import DIM, SPACE, unit
from tests.npm import installed

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "integrations" / "javascript"
TYPESCRIPT = ("typescript@5.9.3", "@types/node@22.19.1")
KEY = "a-key-of-the-test-0123456789"
PNG = b"\x89PNG a picture"

PROLOGUE = """
import { Braid, BraidError } from "braid-stream";
const [url, apiKey] = process.argv.slice(2);
const braid = new Braid(url, { apiKey });
const refused = async (call) => {
  try {
    return { answered: await call() };
  } catch (error) {
    if (!(error instanceof BraidError)) throw error;
    const { name, message, status, field, reason, retryAfter } = error;
    return { name, message, status, field, reason, retryAfter };
  }
};
const print = (value) => console.log(JSON.stringify(value));
"""


def node_program() -> str:
    program = shutil.which("node")
    if program is None:
        missing("node is not installed")
    return program


def project(folder: Path) -> Path:
    """A project with the client in its node_modules."""
    modules = folder / "node_modules"
    modules.mkdir()
    (modules / "braid-stream").symlink_to(PACKAGE)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def run(folder: Path, code: str, *arguments: str) -> str:
    file = project(folder) / "program.js"
    file.write_text(code)
    command = [node_program(), "--preserve-symlinks", str(file), *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(folder: Path, calls: str, *arguments: str) -> list[Any]:
    return [json.loads(line) for line in run(folder, PROLOGUE + calls, *arguments).splitlines()]


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


def test_searches_records_and_the_state_of_the_node(
    node: Node, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "bird.png").write_bytes(PNG)
    values = json.dumps([float(value) for value in unit("raw")])
    calls = f"""
import {{ readFile }} from "node:fs/promises";
const bytes = await readFile("bird.png");
const filter = {{ lang: "de", number: {{ gte: 5 }} }};
print(await braid.search({{ text: "a red bird", k: 3 }}));
print(await braid.search({{ image: bytes, text: "at night", k: 4, vector: "image", filter }}));
print(await braid.search({{ image: new Blob([bytes]), k: 2, min_offsets: {{ 0: 30 }} }}));
print(await braid.search({{ image: bytes.toString("base64"), k: 2 }}));
print(await braid.search({{ query: {{ values: {values}, space: "{SPACE}" }}, k: 2 }}));
print(await braid.searchBatch({{ queries: [{{ id: "r2", k: 1 }}, {{ id: "nobody" }}] }}));
print(await braid.getRecord("r4", {{ generation: "g0001", min_offsets: "0:30,1:5" }}));
print(await braid.embeddings({{ model: "champion", input: ["rain"] }}));
print(await braid.status());
print(await braid.generations());
print(await braid.readyz());
print(typeof (await braid.prometheus()));
"""
    results = asked(tmp_path, calls, node.url)
    text, composed, blob, encoded, raw, batch, record, embedded, status, listed, ready, metrics = (
        results
    )
    for took in (text, composed, blob, encoded, raw):
        took.pop("took_ms")
    expected = client.search(text="a red bird", k=3).model_dump(
        mode="json", exclude_unset=True, exclude={"took_ms"}
    )
    assert text == expected
    german = {"lang": "de", "number": {"gte": 5}}
    assert ids(composed) == node.expected(
        unit("at night", PNG, None), k=4, vector="image", filter=german
    )
    assert ids(blob) == node.expected(unit(None, PNG, None), k=2)
    assert encoded == blob
    assert ids(raw) == node.expected(unit("raw"), k=2)
    assert ids(batch["answers"][0]) == ["r2"]
    assert (batch["answers"][1]["status"], batch["answers"][1]["error"]["field"]) == (404, "id")
    assert record == client.get("r4").model_dump(mode="json")
    assert len(embedded["data"][0]["embedding"]) == DIM
    assert (status["records"], status["lag"]) == (len(IDS), {"0": 0})
    assert listed["serving"] == "g0001"
    assert ready == {"ready": True}
    assert metrics == "string"


def test_a_deletion_needs_the_key_and_any_id_stays_one_segment(node: Node, tmp_path: Path) -> None:
    calls = """
print(await refused(() => new Braid(url).deleteRecord("r1")));
print(await braid.deleteRecord("r1"));
for (const id of ["..", "a/../b", "a?b#c%2F", "ü ☃"]) {
  print(await refused(() => braid.getRecord(id)));
}
"""
    with serving(node, keys=ApiKeys([KEY])) as (url, _):
        without, deleted, *others = asked(tmp_path, calls, url, KEY)
    assert (without["name"], without["status"], without["field"]) == (
        *("BraidError", 401),
        "authorization",
    )
    assert deleted == {"id": "r1", "partition": 1, "offset": 42}
    assert node.deleted == ["r1"]
    statuses = [(one["status"], one["field"]) for one in others]
    assert statuses == [(0, "id"), (404, "id"), (404, "id"), (404, "id")]
    assert "'ü ☃'" in others[-1]["reason"]


def test_a_refusal_is_an_error_with_status_field_and_reason(node: Node, tmp_path: Path) -> None:
    calls = """
print(await refused(() => braid.search({ text: "q", k: 0 })));
print(await refused(() => braid.search({ text: "q", min_offsets: { 0: 99 }, timeout_ms: 10 })));
print(await refused(() => new Braid("http://127.0.0.1:1").status()));
const html = async () => new Response("<html>", { status: 502 });
print(await refused(() => new Braid(url, { fetch: html }).status()));
const stopped = AbortSignal.abort(new Error("enough"));
print(await braid.status({ signal: stopped }).catch((error) => error.message));
"""
    bad, late, away, proxy, stopped = asked(tmp_path, calls, node.url)
    assert (bad["name"], bad["status"], bad["field"]) == ("BraidError", 422, "k")
    assert bad["message"] == f"k: {bad['reason']}"
    assert (late["status"], late["field"], late["retryAfter"]) == (412, "min_offsets", 1)
    assert (away["status"], away["field"]) == (0, None)
    assert (proxy["status"], proxy["reason"]) == (502, "answered 502")
    assert stopped == "enough"


def test_the_program_of_the_readme_runs_as_written(node: Node, tmp_path: Path) -> None:
    (program,) = [block for block in blocks(PACKAGE / "README.md") if block.language]
    (tmp_path / "pictures" / "red").mkdir(parents=True)
    (tmp_path / "pictures" / "red" / "red-1.png").write_bytes(PNG)
    printed = run(tmp_path, program.code.replace("http://127.0.0.1:8077", node.url))
    lines = printed.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("404 id no record 'nobody'")


def test_the_readme_names_every_call() -> None:
    calls = set(re.findall(r"^  (\w+)\(.*Promise<", (PACKAGE / "index.d.ts").read_text(), re.M))
    text = (PACKAGE / "README.md").read_text()
    assert len(calls) >= 12
    assert [name for name in calls if f"`{name}`" not in text] == []


TYPED = """
import { Braid, BraidError, type Hit, type SearchAnswer } from "braid-stream";
const braid = new Braid("http://127.0.0.1:8077", { apiKey: "key", timeoutMs: 100 });
const answer: SearchAnswer = await braid.search({ text: "a", k: 3, vector: "image" });
await braid.search({ image: new Uint8Array([1, 2]), text: "at night" });
const scores: number[] = answer.hits.map((hit: Hit) => hit.score);
const text: string | null = answer.hits[0].text;
const { offset }: { offset: number } = await braid.deleteRecord("r1", { min_offsets: "0:1" });
const lag: Record<string, number> | null | undefined = (await braid.status()).lag;
export const field = (error: BraidError): string | null => error.field;
export { scores, text, offset, lag };
"""
WRONG = """
import { Braid } from "braid-stream";
const braid = new Braid("http://127.0.0.1:8077");
await braid.search({ text: 1 });
await braid.search({ text: "a", vector: "colour" });
await braid.search({ texts: "a" });
await braid.getRecord();
export const hits: string = (await braid.search({ text: "a" })).hits;
"""


def test_the_types_are_those_of_the_compiler(tmp_path: Path) -> None:
    modules = installed(*TYPESCRIPT)
    project(tmp_path)
    (tmp_path / "node_modules" / "@types").symlink_to(modules / "@types")
    (tmp_path / "node_modules" / "undici-types").symlink_to(modules / "undici-types")
    (tmp_path / "right.ts").write_text(TYPED)
    (tmp_path / "wrong.ts").write_text(WRONG)
    flags = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022"]
    flags += ["--types", "node", "--preserveSymlinks"]
    compiler = [node_program(), str(modules / "typescript" / "lib" / "tsc.js"), *flags]
    done = subprocess.run(
        [*compiler, "right.ts", "wrong.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    wrong = [line.split(":")[0] for line in done.stdout.splitlines() if ": error TS" in line]
    assert wrong == [f"wrong.ts({line},{column})" for line, column in WRONG_AT], done.stdout


WRONG_AT = [(4, 22), (5, 33), (6, 22), (7, 13), (8, 14)]


def test_the_client_is_that_of_the_description(tmp_path: Path) -> None:
    """As `make reference` writes it; a file that differs is named."""
    for name in ("index.js", "index.d.ts"):
        shutil.copy(PACKAGE / name, tmp_path / name)
    changed = tmp_path / "index.js"
    changed.write_text(changed.read_text().replace("/v1/search", "/v1/seek"))
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(
        [*command, "--client", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}: index.js out of date: run make reference\n"
