"""OpenAPI descriptions that FastAPI cannot derive from the code.

The search route parses its body itself, because JSON and uploads share one path; both forms are
described here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from braid.modalities import MEDIA, MODALITIES, listed

from .requests import BatchBody, EmbeddingsBody, SearchBody

REF = "#/components/schemas/"
EXAMPLES: dict[str, dict[str, Any]] = {
    "words": {"value": {"text": "a red bird", "k": 5}},
    "a picture and words, filtered": {
        "value": {
            "text": "at night",
            "image": "iVBORw0KGgo=",
            "vector": "image",
            "filter": {"lang": "en", "year": {"gte": 2020}},
        }
    },
    "what is like this record": {"value": {"id": "bird-1", "k": 3}},
    "read your own writes": {
        "value": {"text": "a red bird", "min_offsets": {"0": 42}, "timeout_ms": 2000}
    },
    "a vector": {"value": {"query": {"values": [0.6, 0.8], "space": "s-1"}}},
}
SEARCH_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": f"{REF}SearchBody"}, "examples": EXAMPLES},
        "multipart/form-data": {"schema": {"$ref": f"{REF}SearchUpload"}},
    },
}
BATCH_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": f"{REF}BatchBody"},
            "example": {"queries": [{"text": "a red bird"}, {"id": "bird-1", "k": 3}]},
        }
    },
}
EMBEDDINGS_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": f"{REF}EmbeddingsBody"},
            "example": {"model": "champion", "input": ["a red bird", "a planet"]},
        }
    },
}
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe(app: FastAPI, *, keys: bool) -> None:
    """Complete `/openapi.json`; `keys`: calls below `/v1/` require an API key."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(app, keys)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(app: FastAPI, keys: bool) -> dict[str, Any]:
    described = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    components: dict[str, Any] = described.setdefault("components", {})
    schemas: dict[str, Any] = components.setdefault("schemas", {})
    for model in (SearchBody, BatchBody, EmbeddingsBody):
        schema = model.model_json_schema(ref_template=REF + "{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    schemas["BatchBody"]["properties"]["queries"]["items"] = {"$ref": f"{REF}SearchBody"}
    schemas["SearchUpload"] = _upload(schemas["SearchBody"])
    if keys:
        components["securitySchemes"] = KEYS
        for path, operations in described["paths"].items():
            for operation in operations.values() if path.startswith("/v1/") else ():
                operation["security"] = [{name: []} for name in KEYS]
    return described


def _upload(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a query as parts: null fields are left out, media are files."""
    properties = {name: _part(name, schema) for name, schema in body["properties"].items()}
    return {
        "type": "object",
        "title": "SearchUpload",
        "description": f"The same query as parts: {listed(MEDIA)} as files, the others as fields; "
        "what is no word is JSON.",
        "additionalProperties": False,
        "properties": properties,
    }


def _part(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    described = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    if name in MEDIA:
        return {
            "type": "string",
            "format": "binary",
            "contentMediaType": "application/octet-stream",
            "title": described["title"],
            "description": f"a {MODALITIES[name].noun} file",
        }
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return described | (choices[0] if choices else {})
