"""The reference of the HTTP API, from FastAPI's OpenAPI description of an index node."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from reference_markdown import code, page, prose, sentence, table

from braid.index.service.app import ServiceDeps, create_app

COMPONENTS = "#/components/schemas/"


def described() -> Mapping[str, Any]:
    """The OpenAPI description of an index node."""

    def unused(*_: Any) -> Any:
        raise AssertionError("only described")

    app = create_app(
        ServiceDeps(
            serving=unused,
            payloads=None,  # type: ignore[arg-type]
            delete=unused,
            status=unused,
            not_ready=unused,
        )
    )
    return app.openapi()


def http_page() -> str:
    api = described()
    parts = [
        f"Version {api['info']['version']} of the API. An index node serves it at "
        "`http.host` and `http.port`, this description as `/openapi.json`, and a page to try it at "
        "`/docs`. With API keys set, calls below `/v1/` need `authorization: Bearer KEY` or "
        '`x-api-key: KEY`. An error is `{"error": {"field", "reason"}}`.'
    ]
    errors: dict[str, str] = {}
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            parts += [f"## {method.upper()} `{path}`", *_operation(operation, errors)]
    rows = [[status, sentence(meaning)] for status, meaning in sorted(errors.items())]
    parts += ["## Errors", table(["status", "meaning"], rows)]
    parts.append("## Schemas")
    for name, schema in sorted(api["components"]["schemas"].items()):
        parts += [f"### {name}", *_schema(schema)]
    return page("HTTP API", *parts)


def _operation(operation: Mapping[str, Any], errors: dict[str, str]) -> Iterator[str]:
    """The parts of one operation; an error that `errors` does not have is added to it."""
    if text := operation.get("description") or operation.get("summary"):
        yield sentence(text)
    if parameters := operation.get("parameters"):
        rows = [
            [
                code(one["name"]),
                one["in"],
                _json_type(one["schema"]),
                sentence(one.get("description") or one["schema"].get("description")),
            ]
            for one in parameters
        ]
        yield table(["parameter", "in", "type", "description"], rows)
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body, `{kind}`: {_json_type(content['schema'])}"
        examples = [one["value"] for one in content.get("examples", {}).values()]
        for example in examples or ([content["example"]] if "example" in content else []):
            yield f"    {json.dumps(example)}"
    rows, usual = [], []
    for status, response in operation["responses"].items():
        meaning = response.get("description", "")
        if status >= "400" and errors.setdefault(status, meaning) == meaning:
            usual.append(status)
            continue
        bodies = [
            f"`{kind}` {_json_type(content.get('schema', {}))}".strip()
            for kind, content in response.get("content", {}).items()
        ]
        rows.append([status, sentence(meaning), ", ".join(bodies)])
    yield table(["status", "meaning", "body"], rows)
    if usual:
        yield f"[Errors](#errors): {', '.join(usual)}"


def _schema(schema: Mapping[str, Any]) -> Iterator[str]:
    if text := schema.get("description"):
        yield prose(text)
    if properties := schema.get("properties"):
        required = schema.get("required", [])
        rows = [
            [
                code(name),
                _json_type(one) + (", required" if name in required else ""),
                "" if one.get("default") is None else code(json.dumps(one["default"])),
                sentence(one.get("description")),
            ]
            for name, one in properties.items()
        ]
        yield table(["field", "type", "default", "description"], rows)
    elif not schema.get("description"):
        yield _json_type(schema)


def _json_type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(COMPONENTS)
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        kinds = [_json_type(choice) for choice in choices if choice != {"type": "null"}]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return ", ".join(code(json.dumps(one)) for one in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"array of {_json_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        kind = f"object of {_json_type(schema['additionalProperties'])}"
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[word]:g}" for word, sign in words.items() if word in schema]
    if "maxLength" in schema:
        bounds.append(f"at most {schema['maxLength']} characters")
    if "maxItems" in schema:
        bounds.append(f"at most {schema['maxItems']}")
    return ", ".join([kind, *bounds])
