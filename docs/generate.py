"""Writes the pages of `docs/reference/`, and the JavaScript client, from the code.

    python docs/generate.py            write them (make reference)
    python docs/generate.py --check    exit with 1 and name the pages that are out of date

Settings come from the models in `stream/settings`, topics and messages from `stream/kafka`, the
HTTP API and its client from FastAPI's OpenAPI description, metrics from the collectors, the command
line from Typer, benchmarks from their docstrings.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from javascript_client import code_file, types_file
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from reference_acls import acls_page
from reference_benchmarks import benchmarks_page
from reference_http import http_page
from reference_markdown import code, page, prose, sentence, table, write
from reference_schemas import SCHEMAS, asyncapi_page, schema_page

from braid.encoders.types import Label, TaskPrediction
from braid.index.metrics import ServiceMetrics
from braid.stream.errors import BadRecord
from braid.stream.feature_cache import CacheMetrics
from braid.stream.kafka import fields as record_fields
from braid.stream.kafka import packing, schemas, topics
from braid.stream.monitoring.ingest_metrics import IngestMetrics
from braid.stream.monitoring.metrics import WorkerMetrics
from braid.stream.settings import Settings
from braid.stream.settings.group import MIB, Group
from braid.stream.settings.source_groups import Source, SourceMap
from braid.stream.settings.sources import CUSTOMARY, variable
from braid.stream.trainer.metrics import TrainerMetrics

FOLDER = Path(__file__).parent / "reference"
JAVASCRIPT = Path(__file__).parent.parent / "integrations" / "javascript"


# ---- settings


def settings_page() -> str:
    parts = [
        "Flags of a command come before the environment, that before `braid.toml` (`BRAID_CONFIG`, "
        "else in the working folder), that before the defaults below. A wrong value or an unknown "
        "name ends the process at start with status 78. In the environment, lists and tables are "
        "JSON.",
        "Times are in seconds and sizes in bytes unless the description says otherwise.",
    ]
    own = [(name, field) for name, field in Settings.model_fields.items() if not _group(field)]
    parts += ["## Process-wide", _settings_table("", own)]
    for name, field in Settings.model_fields.items():
        if group := _group(field):
            parts += [f"## `[{name}]`"]
            if group.__doc__ and group.__doc__ != Group.__doc__:
                parts.append(prose(group.__doc__))
            parts.append(_settings_table(f"{name}.", list(group.model_fields.items())))
    for title, kind in (("[[sources]]", Source), ("[sources.map]", SourceMap)):
        parts += [f"## `{title}`", prose(kind.__doc__)]
        rows = [_row(name, field) for name, field in kind.model_fields.items()]
        parts.append(table(["key", "type", "default", "description"], rows))
    return page("Settings", *parts)


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Group) else None


def _settings_table(prefix: str, items: Sequence[tuple[str, FieldInfo]]) -> str:
    rows = []
    for name, field in items:
        full = f"{prefix}{name}"
        variables = [CUSTOMARY[full]] if full in CUSTOMARY else []
        shown = ", ".join(code(one) for one in [*variables, variable(full)])
        rows.append([*_row(name, field)[:-1], shown, sentence(field.description)])
    return table(["key", "type", "default", "variable", "description"], rows)


def _row(name: str, field: FieldInfo) -> list[str]:
    """Key, type, default and description."""
    kind = ", ".join([_type(field.annotation), *_bounds(field)])
    return [code(name), kind, _default(field), sentence(field.description)]


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(code(json.dumps(value)) for value in inner)
    if origin is Annotated:
        return _type(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(_type(one) for one in inner if one is not NoneType)
    if annotation is SourceMap or inner == (Source,):
        return "table" if annotation is SourceMap else "list of tables"
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return "table"
    names = {SecretStr: "secret", Path: "path"}
    return str(names.get(annotation) or annotation.__name__)


def _bounds(field: FieldInfo) -> list[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = []
    for item in field.metadata:
        found += [
            f"{sign} {_number(getattr(item, at))}"
            for at, sign in signs.items()
            if hasattr(item, at)
        ]
        if getattr(item, "min_length", None):
            found.append("not empty")
        if getattr(item, "pattern", None):
            found.append(code(item.pattern))
    return found


def _number(value: float) -> str:
    return f"{value / MIB:g} MiB" if value >= MIB and value % MIB == 0 else f"{value:g}"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "computed"
    value = field.default
    if field.is_required():
        return "required"
    if value is None:
        return ""
    if isinstance(value, int) and value >= MIB and value % MIB == 0:
        return f"`{value}` ({value // MIB} MiB)"
    return code(
        json.dumps(value if isinstance(value, (int, float, str, list, dict)) else str(value))
    )


# ---- topics


CONTENT = {
    "records": "what producers send; a null value deletes the id",
    "parts": "records with some of their modalities, joined by id into `records`",
    "parts-seen": "the state of that join",
    "vectors": "embedded records, for the index; a null value deletes the id",
    "predictions": "what the tasks predict for each record",
    "dead-letters": "messages that could not be processed, untouched; the reason is in headers",
    "dead-letters-replayed": "an empty map for each dead letter that was sent again",
    "statistics": "sums over some seconds of a version's outputs, under `GENERATION/MODEL`",
    "braid-app-drift-windows-changelog": "the windows of those sums, in a table of Faust's",
    "braid-app-drift-versions-changelog": "each version's reference for them, likewise",
    "models": "announcements of versions, generations, the champion and the partition count",
}


def topics_page() -> str:
    plan = topics.plan(Settings.model_construct(), "g0001")
    rows = [
        [
            code(topic.name),
            sentence(CONTENT[topic.name.partition(".")[0]]),
            "1" if topic.partitions == 1 else "`kafka.partitions`",
            ", ".join(f"`{key}={value}`" for key, value in topic.config.items()),
        ]
        for topic in plan
    ]
    limits = {
        "value of `records` and `parts`": schemas.MAX_RECORD_BYTES,
        "value of `dead-letters`": schemas.MAX_DEAD_LETTER_BYTES,
        "`id`, in UTF-8": schemas.MAX_ID_BYTES,
        "`text`, in UTF-8": schemas.MAX_TEXT_BYTES,
        "`uri`": schemas.MAX_URI_BYTES,
        "`meta`, packed": record_fields.MAX_META_BYTES,
        "names of fields, meta, labels and `media_type`": packing.MAX_NAME_BYTES,
    }
    unit = {"dtype": "<f4", "data": "float32, little-endian"}
    examples: list[tuple[str, Callable[..., Any], Mapping[str, Any]]] = [
        ("predictions", schemas.encode_prediction, _prediction()),
        (
            "vectors.gNNNN: progress, under the key `__progress`",
            schemas.encode_progress,
            schemas.decode_map(schemas.encode_progress(42)),
        ),
        ("dead-letters: headers", schemas.dead_letter_headers, _dead_letter()),
    ]
    parts = [
        "Every name is preceded by `prefix`. A process that starts creates missing topics and "
        "leaves existing ones as they are. `vectors.gNNNN` exists once for each generation. "
        "[Produce records](../how-to/produce.md) and [operate](../how-to/operate.md) show programs "
        "that write and read them.",
        table(["topic", "content", "partitions", "configuration"], rows),
        "`kafka.replication` replicas each. The partition count is fixed once `records` exists.",
        "## Messages",
        "For code generators: an [AsyncAPI document](asyncapi.json), and JSON Schemas of "
        + ", ".join(f"[{name}](schemas/{name}.json)" for name in SCHEMAS)
        + ".",
        "Values are msgpack maps, those of `vectors` and `predictions` JSON if "
        "`worker.vectors_format` and `worker.predictions_format` say so, with a version field "
        "`v`, now "
        f"{schemas.SCHEMA_VERSION}; keys are the record's id in UTF-8. Unknown fields are left out "
        "and counted; an unknown `v` is a dead letter.",
        "## Limits",
        table(["what", "bytes at most"], [[what, f"{size:,}"] for what, size in limits.items()]),
        f"A record has at most {record_fields.MAX_LABELS} labels.",
        "## `records` and `parts`",
        prose(schemas.Record.__doc__),
        _dataclass_table(schemas.Record),
        "In `parts`, a record may also have `expects`: the modalities that the join waits for.",
        "### `image` and `audio`",
        prose(schemas.Blob.__doc__),
        _dataclass_table(schemas.Blob),
        "## `vectors.gNNNN`",
        prose(schemas.Vector.__doc__),
        _dataclass_table(schemas.Vector),
        f"A vector is a map such as `{json.dumps(unit)}`; `<f2` is read too.",
    ]
    for title, function, example in examples:
        topic, _, what = title.partition(": ")
        parts += [f"## `{topic}`" + (f": {what}" if what else "")]
        parts += [_section(function.__doc__), f"```json\n{json.dumps(example, indent=2)}\n```"]
        if topic == "predictions":
            parts.append(f"Each of `tasks`:\n\n{_attributes(TaskPrediction.__doc__)}")
    return page("Topics and messages", *parts)


def _section(doc: str | None) -> str:
    """A docstring with its arguments as a list."""
    text, _, arguments = inspect.cleandoc(doc or "").partition("\nArgs:\n")
    listed = re.sub(r"^    (\w+): ", r"- `\1`: ", arguments, flags=re.M)
    return f"{text.strip()}\n\n" + re.sub(r"\n +", " ", listed)


def _attributes(doc: str | None) -> str:
    """The attributes in a docstring, as a list."""
    section = _section(inspect.cleandoc(doc or "").replace("Attributes:", "Args:"))
    return section.partition("\n\n")[2]


def _dataclass_table(kind: type) -> str:
    rows = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        annotation, description = get_args(hint)
        rows.append([code(name), _message_type(annotation), sentence(description)])
    return table(["field", "type", "description"], rows)


def _message_type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) and NoneType in inner:
        return f"{_message_type(inner[0])}, optional"
    if origin is Mapping:
        return f"map of {_message_type(inner[0])} to {_message_type(inner[1])}"
    if annotation is schemas.Vector32:
        return "vector"
    if annotation == Label:
        return "label"
    return {Any: "value", str: "string"}.get(annotation) or annotation.__name__.lower()


def _prediction() -> dict[str, Any]:
    packed = schemas.encode_prediction(
        id="bird-1",
        ts=1_700_000_000_000,
        model="braid-0001",
        tasks={
            "category": asdict(
                TaskPrediction(
                    kind="classification",
                    rule="weighted",
                    label="animals",
                    prob=0.93,
                    probs={"animals": 0.93, "vehicles": 0.07},
                    by={
                        "text": {"label": "animals", "prob": 0.88},
                        "fused": {"label": "animals", "prob": 0.95},
                    },
                )
            )
        },
        source=(0, 42),
        latency_ms=12.5,
    )
    return schemas.decode_map(packed)


def _dead_letter() -> dict[str, str]:
    error = BadRecord("id", "must be a non-empty string, got null")
    headers = schemas.dead_letter_headers(
        error, topic="records", partition=0, offset=42, ts=1_700_000_000_000
    )
    return {name: value.decode() for name, value in headers}


# ---- metrics


def metrics_page() -> str:
    service = ServiceMetrics()
    CacheMetrics(service.registry)
    processes = {
        "Embed worker: `braid embed`, `metrics.port`": WorkerMetrics().registry,
        "Index node: `braid index`, `/metrics`": service.registry,
        "Sources: `braid ingest`, `metrics.port`": IngestMetrics().registry,
        "Trainer: `braid retrain`, `metrics.port` or `metrics.file`": TrainerMetrics().registry,
    }
    parts = [
        "In the text format of Prometheus, under the names below. A histogram has `_bucket`, "
        "`_sum` and `_count`, a summary `_sum` and `_count`; all but gauges have `_created`, too."
    ]
    for title, registry in processes.items():
        parts += [
            f"## {title}",
            table(["name", "type", "labels", "description"], _metrics(registry)),
        ]
    return page("Metrics", *parts)


def _metrics(registry: CollectorRegistry) -> Iterator[list[str]]:
    # prometheus_client shows label names only on samples, and there are none yet.
    collectors = dict.fromkeys(registry._names_to_collectors.values())
    described: list[tuple[str, str, Sequence[str], str]] = []
    for collector in collectors:
        (metric,) = collector.describe()  # type: ignore[attr-defined]
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = collector._labelnames  # type: ignore[attr-defined]
        described.append((name, metric.type, labels, metric.documentation))
    for name, kind, labels, text in sorted(described):
        yield [code(name), kind, ", ".join(code(label) for label in labels), sentence(text)]


# ---- the command line


def cli_page() -> str:
    command = [sys.executable, "-m", "typer", "braid.stream.cli.main", "utils", "docs"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BRAID_")}
    done = subprocess.run(
        [*command, "--name", "braid"], capture_output=True, text=True, check=True, env=plain
    )
    return page("Command line", done.stdout.partition("\n")[2])


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "acls.md": acls_page,
    "topics.md": topics_page,
    "http-api.md": http_page,
    "metrics.md": metrics_page,
    "cli.md": cli_page,
    "benchmarks.md": benchmarks_page,
    "asyncapi.json": lambda: asyncapi_page(CONTENT),
    **{f"schemas/{name}.json": partial(schema_page, name) for name in SCHEMAS},
}


CLIENT: dict[str, Callable[[], str]] = {"index.js": code_file, "index.d.ts": types_file}


def main() -> None:
    parser = ArgumentParser(
        description="Write the pages of docs/reference/ and the JavaScript client."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--client", type=Path, default=JAVASCRIPT, help="of the JavaScript client")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    written = {options.folder: PAGES, options.client: CLIENT}
    stale = [
        f"{folder}: {', '.join(names)} out of date: run make reference"
        for folder, files in written.items()
        if (names := write(folder, files, check=options.check))
    ]
    if options.check and stale:
        sys.exit("\n".join(stale))


if __name__ == "__main__":
    main()
