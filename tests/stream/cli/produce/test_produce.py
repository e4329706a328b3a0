"""`braid produce` on Apache Kafka: killed and continued, and from an object store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path

import fsspec
import pytest

from braid.stream.cli.produce import storage
from braid.stream.kafka.schemas import decode_record
from tests.object_storage import BUCKET, KEYS, S3Server
from tests.stream.cli.produce.test_inputs import PNG, shard
from tests.stream.harness import Deployment, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

COUNT = 4000


def ids(deployment: Deployment) -> Counter[str]:
    return Counter((message.key or b"").decode() for message in deployment.read("records"))


def test_a_run_that_is_killed_goes_on_at_its_checkpoint(
    deployment: Deployment, tmp_path: Path
) -> None:
    lines = [f'{{"id": "r{number}", "text": "text {number}"}}\n' for number in range(COUNT)]
    lines[10] = '{"id": 5}\n'
    (tmp_path / "a.jsonl").write_text("".join(lines))
    kept = tmp_path / "kept.json"
    command = ["-m", "braid", "produce", str(tmp_path / "a.jsonl"), "--checkpoint", str(kept)]
    child = deployment.child("produce", [*command, "--rate", "150"])

    def done() -> int:
        (one,) = json.loads(kept.read_text())["inputs"].values() if kept.exists() else [{}]
        return int(one.get("entries", 0))

    wait_for("a checkpoint", lambda: done() > 100, timeout=60)
    child.stop(grace=0)
    before, at = ids(deployment), done()
    assert at <= before.total() + 1 < COUNT
    env = {**os.environ, **deployment.settings.environment()}
    again = subprocess.run(
        [sys.executable, *command], env=env, capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert again.stdout == f"sent {COUNT - 1} records, refused 1\n"
    assert "refused a.jsonl:11: " in again.stderr  # by the first run
    counts = ids(deployment)
    assert len(counts) == COUNT - 1
    repeated = counts.total() - len(counts)
    assert repeated == before.total() + 1 - at  # what was sent behind the checkpoint, and no more
    again = subprocess.run(
        [sys.executable, *command], env=env, capture_output=True, text=True, check=False
    )
    assert again.stdout == f"sent {COUNT - 1} records, refused 1\n"
    assert ids(deployment) == counts


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a prefix in the bucket; its server is in the environment."""
    more = {"AWS_ENDPOINT_URL": s3.address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    for name, value in (KEYS | more).items():
        monkeypatch.setenv(name, value)
    return f"{BUCKET}/{uuid.uuid4().hex[:8]}"


@pytest.mark.s3
def test_an_object_store_is_read_as_files_are(
    deployment: Deployment, tmp_path: Path, bucket: str
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    storage._use_obstore()
    fs = fsspec.filesystem("s3")
    for number in range(3):
        members = {f"{number}{n}.txt": f"text {number}{n}".encode() for n in range(5)}
        fs.pipe_file(f"{bucket}/train/t-{number:03}.tar", shard(members))
    parquet.write_table(
        pa.table({"id": ["p1"], "image": ["media/one.png"]}), tmp_path / "t.parquet"
    )
    fs.pipe_file(f"{bucket}/t.parquet", (tmp_path / "t.parquet").read_bytes())
    fs.pipe_file(f"{bucket}/media/one.png", PNG)
    fs.pipe_file(f"{bucket}/pictures/red/two.txt", b"two")
    urls = [f"s3://{bucket}/{name}" for name in ("train/t-{000..002}.tar", "t.parquet", "pictures")]
    env = {**os.environ, **deployment.settings.environment()}
    command = [sys.executable, "-m", "braid", "produce", *urls, "--label", "colour", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sent"] == 17
    there = {
        one.id: one
        for message in deployment.read("records")
        for one in [decode_record(message.key, message.value or b"")]
    }
    assert there["23"].text == "text 23"
    assert there["p1"].image is not None
    assert there["p1"].image.data == PNG
    assert there["red/two"].labels == {"colour": "red"}
    for url, says in (
        (f"s3://{bucket}/none.csv", f"braid: PATH: s3://{bucket}/none.csv does not exist"),
        ("s3://other/t.csv", "braid: "),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "braid", "produce", url],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith(says)
        assert "Traceback" not in done.stderr
