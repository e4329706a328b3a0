"""The Helm chart lints and renders, and what it renders is valid, confined and fits the code."""

from __future__ import annotations

import asyncio
import json
import os
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import httpx
import kubernetes_validate
import pytest
import yaml

from braid.index.service.limits.hosts import Hosts
from braid.index.service.server import waiting_app
from braid.stream.monitoring.metrics import WorkerMetrics, serve
from braid.stream.settings import Settings, load
from tests.command_lines import check_command
from tests.deploy.charts import (
    CHART,
    OPERATORS,
    Manifest,
    environment,
    one,
    pods,
    rendered,
    validate,
)

EVERYTHING: dict[str, Any] = {
    "image": {"repository": "registry.example.org/braid", "digest": "sha256:" + 64 * "0"},
    "imagePullSecrets": [{"name": "pull"}],
    "kafka": {"bootstrap": "broker.example.org:9093", "topicPrefix": "team-"},
    "config": '[batch]\nlatency_ms = 500.0\n[links]\nhosts = ["example.org"]\n',
    "secretEnv": ["keys"],
    "secrets": {"REDIS_URL": "rediss://:secret@redis:6379/0"},
    "secretFiles": ["kafka-certificates"],
    "env": [{"name": "OMP_NUM_THREADS", "value": "2"}],
    "home": {"storageClass": "nfs"},
    "worker": {
        "args": ["--device", "cuda"],
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}},
        "scaling": {
            "enabled": True,
            "generations": ["g0001", "g0002"],
            "authenticationRef": "kafka",
            "kafkaMetadata": {"sasl": "scram_sha512", "tls": "enable"},
        },
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
            }
        ],
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "search"},
        "env": [{"name": "BRAID_WORKER__PREPARE_THREADS", "value": "4"}],
    },
    "ingest": {"enabled": True},
    "index": {
        "replicas": 3,
        "hosts": ["search.example.org"],
        "storage": {"storageClass": "fast"},
        "service": {"annotations": {"a": "b"}},
        "affinity": {"nodeAffinity": {}},
    },
    "trainer": {"args": ["--promote", "--preset", "base"]},
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "extraEgress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
    },
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "serviceAccount": {"annotations": {"a": "b"}},
}
LEAST: dict[str, Any] = {
    "home": {"existingClaim": "models"},
    "worker": {"disruptionBudget": {"enabled": False}},
    "index": {"disruptionBudget": {"enabled": False}},
    "trainer": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "serviceAccount": {"create": False},
}
VALUES = {"defaults": {}, "everything": EVERYTHING, "least": LEAST}

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(params=VALUES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(VALUES[request.param])


def test_helm_has_nothing_to_say() -> None:
    found = helm_python.lint(CHART)
    assert found["total_charts_linted"] == 1
    assert [each["error"] for each in found["messages"]] == ["icon is recommended"]


def test_what_is_rendered_is_valid(manifests: list[Manifest]) -> None:
    kinds = set()
    for manifest in manifests:
        kinds.add(manifest["kind"])
        if manifest["apiVersion"] not in OPERATORS:
            validate(manifest)
    assert kinds >= {"ConfigMap", "Deployment", "StatefulSet", "Service"}
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(names)) == len(names)


def test_everything_has_all_kinds() -> None:
    kinds = {each["kind"] for each in rendered(EVERYTHING)}
    assert kinds >= {
        *("CronJob", "NetworkPolicy", "PodDisruptionBudget", "PersistentVolumeClaim"),
        *("PrometheusRule", "ScaledObject", "Secret", "ServiceAccount", "ServiceMonitor"),
    }


def test_a_wrong_manifest_would_be_noticed() -> None:
    deployment = one(rendered(), "Deployment", "demo-braid-worker")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(deployment)


@pytest.mark.parametrize(
    "values",
    [
        {"worker": {"replica": 2}},
        {"index": {"port": 0}},
        {"image": {"digest": "sha256:1"}},
        {"networkPolicy": {"searchFrom": []}},  # Kubernetes takes it for everyone
        {"worker": {"scaling": {"generations": []}}},
        {"worker": {"terminationGracePeriodSeconds": 5}},
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        rendered(values)


# ---- confined


def test_no_container_is_root_or_writes_to_its_image(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            confined = container["securityContext"]
            assert confined["readOnlyRootFilesystem"] is True
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_the_image_has_the_user_of_the_chart() -> None:
    text = (CHART.parent.parent.parent / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+):\d+$", text, re.M)
    assert re.search(rf"useradd --uid {user} ", text)
    for pod in pods(rendered()):
        assert pod["spec"]["securityContext"]["runAsUser"] == int(user)


def test_secrets_are_neither_in_the_pods_nor_in_the_configuration() -> None:
    manifests = rendered(EVERYTHING)
    for manifest in manifests:
        assert ("secret@redis" in json.dumps(manifest)) == (manifest["kind"] == "Secret")
    for pod in pods(manifests):
        (container,) = pod["spec"]["containers"]
        names = [each["secretRef"]["name"] for each in container["envFrom"]]
        assert names == ["demo-braid", "keys"]


# ---- what the code knows


@pytest.mark.parametrize("name", VALUES)
def test_the_processes_start_with_these_settings(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifests = rendered(VALUES[name])
    kinds = []
    for pod in pods(manifests):
        (container,) = pod["spec"]["containers"]
        check_command(container["args"])
        kinds.append(container["args"][0])
        settings = settings_of(manifests, pod, monkeypatch, tmp_path)
        mounts = [Path(each["mountPath"]) for each in container["volumeMounts"]]
        writable = [
            Path(each["mountPath"])
            for each in container["volumeMounts"]
            if not each.get("readOnly", False)
        ]
        assert settings.home in writable
        assert Path(environment(pod)["HOME"]) in writable
        assert Path(environment(pod)["BRAID_CONFIG"]).parent in mounts
        if kinds[-1] == "index":
            assert settings.index_home.parent in writable
            assert settings.http.port == container["ports"][0]["containerPort"]
            assert settings.http.host == "0.0.0.0"
        if kinds[-1] in ("embed", "ingest"):
            assert settings.metrics.port == container["ports"][0]["containerPort"]
        if name == "everything":
            assert settings.batch.latency_ms == 500
            assert settings.redis.url == "rediss://:secret@redis:6379/0"
    assert (
        sorted(kinds)
        == {
            "defaults": ["embed", "index", "retrain"],
            "everything": ["embed", "index", "ingest", "retrain"],
            "least": ["embed", "index"],
        }[name]
    )


def settings_of(
    manifests: list[Manifest], pod: Manifest, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> Settings:
    """What a process of the pod loads from its environment, the ConfigMap and the Secret."""
    for variable in os.environ:
        if variable.startswith("BRAID_") or variable in ("KAFKA_BOOTSTRAP", "REDIS_URL"):
            monkeypatch.delenv(variable)
    secrets = [each for each in manifests if each["kind"] == "Secret"]
    for given in [environment(pod), *(each["stringData"] for each in secrets)]:
        for variable, value in given.items():
            monkeypatch.setenv(variable, value)
    file = folder / "braid.toml"
    file.write_text(one(manifests, "ConfigMap", "demo-braid")["data"]["braid.toml"])
    monkeypatch.setenv("BRAID_CONFIG", str(file))
    return load()


async def answered(app: Any, host: str, path: str) -> Any:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        return (await client.get(path)).json()


def test_the_index_answers_to_the_names_of_its_service_and_to_probes() -> None:
    manifests = rendered(EVERYTHING)
    pod = one(manifests, "StatefulSet", "demo-braid-index")["spec"]["template"]
    hosts = Hosts("0.0.0.0", json.loads(environment(pod)["BRAID_HTTP__HOSTS"]))
    assert one(manifests, "Service", "demo-braid-index")
    for host in ("demo-braid-index", "demo-braid-index.ml.svc:80", "search.example.org"):
        assert hosts.accepts(host)
    assert hosts.accepts("10.1.2.3:8077")  # the kubelet's
    assert not hosts.accepts("example.org")
    probe = pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]
    app = waiting_app(lambda: "not yet", hosts)
    answer = asyncio.run(answered(app, "10.1.2.3:8077", probe["path"]))
    assert answer == {"ready": False, "reason": "not yet"}


def test_the_worker_answers_its_probe() -> None:
    pod = one(rendered(), "Deployment", "demo-braid-worker")["spec"]["template"]
    probe = pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]
    server, _ = serve(WorkerMetrics().registry, "127.0.0.1", 0, lambda: (True, {"status": "ok"}))
    try:
        url = f"http://127.0.0.1:{server.server_port}{probe['path']}"
        with urllib.request.urlopen(url) as answer:
            assert json.load(answer) == {"status": "ok"}
    finally:
        server.shutdown()
        server.server_close()


def test_workers_scale_by_the_lag_of_their_groups() -> None:
    scaled = one(rendered(EVERYTHING), "ScaledObject", "demo-braid-worker")["spec"]
    settings = Settings(prefix="team-")
    for trigger, generation in zip(scaled["triggers"], ["g0001", "g0002"], strict=True):
        metadata = trigger["metadata"]
        assert trigger["type"] == "kafka"
        assert metadata["consumerGroup"] == settings.group(generation)
        assert metadata["topic"] == settings.topic("records")
        assert metadata["sasl"] == "scram_sha512"
        assert all(isinstance(value, str) for value in metadata.values())
        assert trigger["authenticationRef"] == {"name": "kafka"}
    # The replicas are the scaler's, not the chart's.
    assert "replicas" not in one(rendered(EVERYTHING), "Deployment", "demo-braid-worker")["spec"]
    assert one(rendered(), "Deployment", "demo-braid-worker")["spec"]["replicas"] == 1


# ---- what finds what


def test_selectors_find_pods_and_services(manifests: list[Manifest]) -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(manifests)]
    services = [each for each in manifests if each["kind"] == "Service"]
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        if kind == "Service":
            assert found(spec["selector"], labels) == 1
        elif kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            assert found(spec["selector"]["matchLabels"], labels) == 1
        elif kind == "NetworkPolicy":
            assert found(spec["podSelector"]["matchLabels"], labels) >= 1
            for each in spec["podSelector"].get("matchExpressions", []):
                assert {one[each["key"]] for one in labels} & set(each["values"])
        elif kind == "ServiceMonitor":
            wanted = spec["selector"]["matchLabels"]
            (service,) = [s for s in services if subset(wanted, s["metadata"]["labels"])]
            assert spec["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
        if kind == "StatefulSet":
            assert one(manifests, "Service", spec["serviceName"])["spec"]["clusterIP"] == "None"
        if kind == "ScaledObject":
            assert one(manifests, "Deployment", spec["scaleTargetRef"]["name"])


def found(selector: Mapping[str, str], labels: list[dict[str, str]]) -> int:
    return sum(subset(selector, each) for each in labels)


def subset(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_alerts_and_dashboard_are_those_of_the_repository() -> None:
    manifests = rendered(EVERYTHING)
    deploy = CHART.parent.parent
    rules = yaml.safe_load((deploy / "prometheus" / "alerts.yml").read_text())
    assert one(manifests, "PrometheusRule", "demo-braid")["spec"] == rules
    dashboard = one(manifests, "ConfigMap", "demo-braid-dashboard")["data"]["braid.json"]
    assert dashboard == (deploy / "grafana" / "braid.json").read_text()
