"""Renders the Helm chart, with Helm's own library, and validates what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "deploy" / "helm" / "braid"
KUBERNETES = ("1.29", "1.37")
"""The oldest version that Chart.yaml allows, and the newest whose schemas are installed."""
OPERATORS = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}  # no schema of these is installed

Manifest = dict[str, Any]


def rendered(values: dict[str, Any] | None = None) -> list[Manifest]:
    """The manifests of the release `demo` in the namespace `ml`.

    Raises:
        HelmError: the values do not fit values.schema.json, or a template is wrong.
    """
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values or {})
        files = chart.render(values or {}, name="demo", namespace="ml")
    return [
        manifest
        for name, text in files.items()
        if name.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest is not None
    ]


def validate(manifest: Manifest) -> None:
    """Check against Kubernetes' schemas, without unknown fields. Raises ValidationError."""
    for version in KUBERNETES:
        kubernetes_validate.validate(manifest, version, strict=True)


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [
        each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)
    ]
    return found


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    """The pod templates: of the Deployment, the StatefulSet and the CronJob."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            yield manifest["spec"]["template"]
        elif manifest["kind"] == "CronJob":
            yield manifest["spec"]["jobTemplate"]["spec"]["template"]


def environment(pod: Manifest) -> dict[str, str]:
    (container,) = pod["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"]}
