"""JSON Schemas of the messages of braid's topics, and the AsyncAPI document that has them.

Records, vectors and predictions come from their dataclasses, topics from `stream/kafka/topics.py`;
tests validate messages as the code writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import version
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from braid.encoders.types import MODALITIES, TaskPrediction
from braid.stream.errors import BadRecord
from braid.stream.kafka import schemas, topics
from braid.stream.kafka.arrays import FLOAT16, FLOAT32
from braid.stream.registry.versions import Champion
from braid.stream.settings import Settings

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
PLAIN: Mapping[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    bytes: {"type": "string", "contentEncoding": "base64", "description": "bin in msgpack"},
    NoneType: {"type": "null"},
    Any: {},
    object: {},
}
VECTOR: Schema = {
    "description": "a unit vector: in JSON a list of numbers, in msgpack the bytes of such, "
    "little-endian",
    "oneOf": [
        {"type": "array", "items": {"type": "number"}},
        {
            "type": "object",
            "required": ["dtype", "data"],
            "additionalProperties": False,
            "properties": {"dtype": {"enum": [FLOAT32, FLOAT16]}, "data": PLAIN[bytes]},
        },
    ],
}
COUNTS: Schema = {"type": "object", "additionalProperties": {"type": "integer"}}


def schema_of(annotation: Any) -> Schema:
    """The schema of a type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        # A schema's own description, as of bytes, comes after that of the field.
        schema = schema_of(inner[0])
        more = f"; {schema['description']}" if "description" in schema else ""
        return schema | {"description": f"{inner[1]}{more}"}
    if annotation is schemas.Vector32:
        return VECTOR
    if origin in (Union, UnionType):
        return {"anyOf": [schema_of(one) for one in inner]}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": schema_of(inner[1])}
    if origin is Sequence:
        return {"type": "array", "items": schema_of(inner[0])}
    if is_dataclass(annotation):
        return object_of(annotation)
    return dict(PLAIN[annotation])


def object_of(kind: Any, *, strict: bool = True) -> Schema:
    """The schema of a dataclass; fields without a default are required.

    Args:
        strict: whether other fields are wrong, as in what braid publishes.
    """
    hints = get_type_hints(kind, include_extras=True)
    schema: Schema = {
        "type": "object",
        "required": [
            field.name
            for field in fields(kind)
            if field.default is MISSING and field.default_factory is MISSING
        ],
        "properties": {name: schema_of(hint) for name, hint in hints.items()},
    }
    return schema | ({"additionalProperties": False} if strict else {})


def message(**properties: Any) -> Schema:
    """The schema of a message of braid's, with its version. Each is required."""
    return {
        "type": "object",
        "required": ["v", *properties],
        "additionalProperties": False,
        "properties": {"v": {"const": schemas.SCHEMA_VERSION}, **properties},
    }


def record_schema(**more: Schema) -> Schema:
    schema = object_of(schemas.Record, strict=False)
    blob = object_of(schemas.Blob, strict=False)
    properties = {"v": {"const": schemas.SCHEMA_VERSION}, **schema["properties"], **more}
    for name in ("image", "audio"):
        described = properties[name]["description"]
        either = [{"required": ["data"]}, {"required": ["uri"]}]
        properties[name] = {**blob, "anyOf": either, "description": described}
    properties["id"] |= {"minLength": 1, "maxLength": schemas.MAX_ID_BYTES}
    properties["ts"] |= {"minimum": 0, "maximum": schemas.MAX_TS}
    return {
        "type": "object",
        "required": ["v", "id"],
        "anyOf": [{"required": [name]} for name in MODALITIES],
        "properties": properties,
    }


def vector_schema() -> Schema:
    schema = object_of(schemas.Vector)
    schema["properties"] = {"v": {"const": schemas.SCHEMA_VERSION}, **schema["properties"]}
    schema["required"].insert(0, "v")
    return schema


def prediction_schema() -> Schema:
    hints = get_type_hints(schemas.encode_prediction)
    tasks = {"type": "object", "additionalProperties": object_of(TaskPrediction)}
    place = {"partition": PLAIN[int], "offset": PLAIN[int]}
    source = {
        "type": "object",
        "description": "the record's place in `records`",
        "required": [*place],
        "properties": place,
    }
    own: dict[str, Schema] = {"tasks": tasks, "source": source}
    names = [name for name in hints if name not in ("canary", "form", "return")]
    schema = message(**{name: own.get(name) or schema_of(hints[name]) for name in names})
    schema["properties"]["canary"] = {
        "type": "object",
        "description": "of a record that a canary takes: its number and the champion's outputs",
        "required": ["number", "model"],
    }
    return schema


def tally_schema() -> Schema:
    moments = {"type": "array", "items": PLAIN[float], "minItems": 3, "maxItems": 3}
    task = {
        "type": "object",
        "properties": {"labels": COUNTS, "confidence": moments, "value": moments},
    }
    return message(
        count=PLAIN[int],
        vectors={"anyOf": [VECTOR, PLAIN[NoneType]], "description": "the sum of fused vectors"},
        norms=PLAIN[float],
        present=COUNTS,
        tasks={"type": "object", "additionalProperties": task},
    )


def models_schema() -> Schema:
    known = object_of(Champion)["properties"] | {
        "uri": PLAIN[str],
        "sha256": {"anyOf": [PLAIN[str], PLAIN[NoneType]]},
        "status": PLAIN[str],
        "metrics": {"type": "object"},
        "partitions": {**PLAIN[int], "description": "under the key `topics`"},
    }
    return {
        "type": "object",
        "description": "the key says what it is: `champion`, `version/NAME`, `generation/NAME` or "
        "`topics`",
        "required": ["v"],
        "properties": {"v": {"const": schemas.SCHEMA_VERSION}, **known},
    }


def header_schema() -> Schema:
    error = BadRecord("id", "must be a string")
    headers = schemas.dead_letter_headers(error, topic="", partition=0, offset=0, ts=0, model="m")
    names = [name for name, _ in headers]
    return {
        "type": "object",
        "required": [name for name in names if name != "model"],
        "properties": dict.fromkeys(names, PLAIN[str]),
    }


EXPECTS = {
    "type": "array",
    "items": {"enum": list(MODALITIES)},
    "description": "the modalities that the join waits for",
}
SCHEMAS: Mapping[str, Schema] = {
    "record": {"description": "a value of `records`", **record_schema()},
    "part": {"description": "a value of `parts`", **record_schema(expects=EXPECTS)},
    "vector": {"description": "a value of `vectors.gNNNN`", **vector_schema()},
    "progress": {
        "description": "the value of `__progress` in `vectors.gNNNN`: the offset in `records` "
        "before which all is published",
        **message(next=PLAIN[int]),
    },
    "prediction": {"description": "a value of `predictions`", **prediction_schema()},
    "dead-letter-headers": {"description": "headers of `dead-letters`", **header_schema()},
    "statistics": {"description": "a value of `statistics`", **tally_schema()},
    "models": models_schema(),
}
"""Name -> schema of a value, or of headers."""


def schema_page(name: str) -> str:
    schema = {"$schema": DRAFT, "title": name, **SCHEMAS[name]}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


# ---- AsyncAPI

MESSAGES: Mapping[str, tuple[str, ...]] = {
    "records": ("record", "deletion"),
    "parts": ("part", "deletion"),
    "vectors": ("vector", "progress", "deletion"),
    "predictions": ("prediction",),
    "dead-letters": ("dead-letter",),
    "statistics": ("statistics",),
    "models": ("models",),
}
"""Topic -> its messages, of those that other programs may read or write."""
KEYS = {"progress": "__progress", "statistics": "GENERATION/MODEL", "models": "what it is"}
RECEIVED = ("records", "parts")


def asyncapi_page(content: Mapping[str, str]) -> str:
    """The AsyncAPI document.

    Args:
        content: topic -> what it holds.
    """
    channels = {}
    for topic in topics.plan(Settings.model_construct(), "g0001"):
        name = topic.name.partition(".")[0]
        if name not in MESSAGES:
            continue
        config = {"cleanup.policy": [topic.config["cleanup.policy"]]}
        channels[name] = {
            "address": f"{name}.gNNNN" if name == "vectors" else name,
            "description": content[name],
            "messages": {one: {"$ref": f"#/components/messages/{one}"} for one in MESSAGES[name]},
            "bindings": {"kafka": {"topicConfiguration": config, "bindingVersion": "0.5.0"}},
        }
    operations = {
        f"{'receive' if name in RECEIVED else 'send'}-{name}": {
            "action": "receive" if name in RECEIVED else "send",
            "channel": {"$ref": f"#/channels/{name}"},
        }
        for name in channels
    }
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "braid",
            "version": version("braid-stream"),
            "description": "What braid reads from Kafka and writes to it. The prefix of the "
            "settings stands before each topic's name. Values of predictions and vectors are JSON "
            "where worker.predictions_format and worker.vectors_format say so.",
        },
        "defaultContentType": "application/msgpack",
        "channels": channels,
        "operations": operations,
        "components": {"messages": {name: _message(name) for name in _names()}},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _names() -> list[str]:
    return list(dict.fromkeys(name for names in MESSAGES.values() for name in names))


def _message(name: str) -> Schema:
    key = {"type": "string", "description": KEYS.get(name, "the record's id")}
    one: Schema = {"bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}}}
    if name == "deletion":
        null = {"type": "null", "description": "no value: the id is deleted"}
        return one | {"payload": null}
    if name == "dead-letter":
        anything = {"description": "the original value, untouched"}
        return one | {"payload": anything, "headers": SCHEMAS["dead-letter-headers"]}
    return one | {"payload": SCHEMAS[name]}
