"""The dashboard and the alerts ask for metrics and labels that exist, in PromQL that parses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    StringLiteral,
    VectorSelector,
)

from braid.index.metrics import REFUSALS
from tests.deploy.charts import ROOT, one, rendered

DEPLOY = ROOT / "deploy"
TARGET = {"instance", "job", "namespace", "pod"}
"""Labels that Prometheus adds to what it scrapes; the last two in Kubernetes."""
SUFFIXES = {
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
    "counter": ("",),  # the name has _total already
    "gauge": ("",),
}


def series() -> dict[str, set[str]]:
    """The names that a scrape of some process has, and the labels of each.

    They are those of the reference, which tests/test_reference.py compares with the code.
    """
    found: dict[str, set[str]] = {}
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", text, re.M):
        for suffix in SUFFIXES[kind]:
            more = {"le"} if suffix == "_bucket" else set()
            found.setdefault(name + suffix, set()).update(re.findall(r"\w+", labels), more)
    return found


SERIES = series()


def labels(expression: Expr) -> set[str] | None:
    """The labels of the result; None: a number. Raises AssertionError: a name is unknown."""
    match expression:
        case VectorSelector():
            assert expression.name in SERIES, f"no process exposes {expression.name}"
            known = SERIES[expression.name] | TARGET
            asked = {each.name for each in expression.matchers.matchers}
            assert asked <= known, f"{expression.name} has no labels {asked - known}"
            return known
        case MatrixSelector():
            return labels(expression.vector_selector)
        case ParenExpr():
            return labels(expression.expr)
        case NumberLiteral() | StringLiteral():
            return None
        case Call():
            inner = [labels(each) for each in expression.args]
            (result,) = [each for each in inner if each is not None]
            if expression.func.name == "absent":
                return set()
            if expression.func.name == "histogram_quantile":
                assert "le" in result, "a quantile needs the buckets"
                return result - {"le"}
            return result
        case AggregateExpr():
            inner_labels = labels(expression.expr)
            assert inner_labels is not None
            if expression.modifier is None:
                return set()
            assert expression.modifier.type == AggModifierType.By
            kept = set(expression.modifier.labels)
            assert kept <= inner_labels, f"nothing below has {kept - inner_labels}"
            return kept
        case BinaryExpr():
            left, right = labels(expression.lhs), labels(expression.rhs)
            if left is not None and right is not None:
                assert left == right, f"{left} and {right} never match"
            return left if left is not None else right
    raise AssertionError(f"unknown kind of expression: {expression}")


def parsed(query: str) -> Expr:
    """A query with Grafana's variables filled in. Raises ValueError: it is no PromQL."""
    return promql_parser.parse(
        query.replace("$__rate_interval", "1m").replace("$generation", "g0001")
    )


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana" / "braid.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def queries() -> Iterator[tuple[str, str, str]]:
    """(where, query, the texts that show labels of its result)."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for rule in rules():
        shown = " ".join(rule["annotations"].values()).replace("$labels.", "")
        yield rule["alert"], rule["expr"], shown


@pytest.mark.parametrize(("query", "shown"), [each[1:] for each in queries()])
def test_queries_ask_for_metrics_and_labels_that_exist(query: str, shown: str) -> None:
    result = labels(parsed(query))
    assert result is not None
    assert set(re.findall(r"{{ *([a-z_]+) *}}", shown)) <= result


@pytest.mark.parametrize(
    "wrong",
    [
        "sum by (generation) (rate(braid_record_total[5m]))",
        "braid_lag{part='1'}",
        "sum by (stage) (braid_lag)",
        "histogram_quantile(0.9, sum by (generation) (rate(braid_batch_records_bucket[1m])))",
        "sum by (generation) (braid_lag) / sum by (partition) (braid_lag)",
    ],
)
def test_a_wrong_query_would_be_noticed(wrong: str) -> None:
    with pytest.raises(AssertionError):
        labels(parsed(wrong))


def test_wrong_promql_would_be_noticed() -> None:
    with pytest.raises(ValueError):
        parsed("sum by (generation (braid_lag)")


def test_the_scaler_asks_prometheus_for_a_lag_that_exists() -> None:
    values = {"worker": {"scaling": {"enabled": True, "prometheusAddress": "http://p:9090"}}}
    scaled = one(rendered(values), "ScaledObject", "demo-braid-worker")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    assert labels(parsed(trigger["metadata"]["query"])) == set()


def test_the_panels_lie_side_by_side() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "braid.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_alerts_are_rules_of_prometheus() -> None:
    for rule in rules():
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        promql_parser.parse_duration(rule.get("for", "1s"))
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    assert 'reason="busy"' in str(rules())
    assert "busy" in REFUSALS


def test_operate_says_what_to_do_about_each_alert() -> None:
    text = (ROOT / "docs" / "how-to" / "operate.md").read_text()
    described = set(re.findall(r"^\| `(Braid\w+)` \|", text, re.M))
    assert described == {rule["alert"] for rule in rules()}
