"""An index node that is cut off from the broker answers, and says that it is behind."""

from __future__ import annotations

import httpx
import pytest

from braid.index.client import Client
from tests.kafka_proxy import KafkaProxy
from tests.stream.harness import MODEL, Deployment, wait_for

pytestmark = pytest.mark.kafka


def test_a_node_that_hears_nothing_is_not_ready_until_it_has_caught_up(
    deployment: Deployment,
) -> None:
    deployment.worker("one")
    with KafkaProxy(deployment.settings.kafka.bootstrap) as proxy, Client(deployment.url) as client:
        env = {"KAFKA_BOOTSTRAP": proxy.address, "BRAID_INDEX__READY_LAG_S": "1"}
        deployment.child("index", ["-m", "braid", "index", "--model", MODEL], env)
        deployment.produce([{"id": "before", "text": "before"}])
        wait_for("it is ready", client.ready, timeout=60)
        proxy.blackhole()
        deployment.produce([{"id": "meanwhile", "text": "meanwhile"}])

        def reason() -> str:
            return str(httpx.get(f"{deployment.url}/readyz", timeout=20).json().get("reason"))

        wait_for("it is behind", lambda: reason().startswith("behind: partition"), timeout=60)
        answer = client.search(text="before", k=5)  # from what it has; the offsets say so
        assert "meanwhile" not in {hit.id for hit in answer.hits}
        proxy.forward()
        wait_for("it is ready again", client.ready, timeout=120)
        wait_for("what came is there", lambda: client.status().records == 2, timeout=60)
