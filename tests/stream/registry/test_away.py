"""Processes on three machines that share a registry in an object store, which goes away."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path

import pytest

from braid.index.client import Client
from braid.stream.registry.versions import registry_of
from tests.object_storage import BUCKET, KEYS, Proxy
from tests.stream.harness import Deployment, wait_for
from tests.stream.worker.test_hot_swap import braid, holds, labelled, said

pytestmark = [pytest.mark.kafka, pytest.mark.s3, pytest.mark.slow]


def test_what_goes_on_and_what_waits_while_the_store_is_away(
    kafka: str, proxy: Proxy, tmp_path: Path
) -> None:
    place = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    model = {"registry": place, "registry_options": proxy.options}
    with Deployment(kafka, tmp_path / "trainer", model=model) as deployment:
        with proxy.away():
            worker = deployment.worker("one", model=None, BRAID_HOME=str(tmp_path / "worker"))
            index = deployment.index(model=None, env={"BRAID_HOME": str(tmp_path / "index")})
            for child in (worker, index):
                wait_for(child.name, said(child, f"waiting for the registry: {place}"), timeout=60)
        deployment.produce(labelled(40))
        keys = {name: KEYS[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        first = braid(deployment, "retrain", "--preset", "tiny", "--json", status=0, **keys)
        assert first["champion"] is True
        with Client(deployment.url) as client:
            wait_for("records are searchable", holds(client, 40), timeout=90)
            with proxy.away():
                deployment.produce(labelled(20, start=100))
                waits = said(worker, "nothing is published until the registry answers")
                wait_for("the worker waits", waits, timeout=60)
                assert client.search(text="a red tile", k=3).model == first["name"]
                assert deployment.lag() == 20
            wait_for("it goes on", holds(client, 60), timeout=60)
        assert worker.running
        assert index.running
        made = Counter(prediction["id"] for prediction in deployment.predictions())
        assert (len(made), set(made.values())) == (60, {1})
        for home in ("worker", "index"):
            registry = registry_of(deployment.settings.replace(home=tmp_path / home))
            assert registry.written(first["name"])
        assert not (tmp_path / "trainer" / "models" / "log").exists()
