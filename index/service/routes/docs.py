"""`/docs`: the OpenAPI description as one static HTML page.

FastAPI's own page loads scripts from a CDN; this page is static HTML without scripts.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h2 { border-top: 1px solid #8884; padding-top: 1rem; margin-top: 2rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; background: #8881; border-radius: 4px; }
code { padding: .1em .3em; } pre { padding: .7rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top;
  padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8883; }
.method { text-transform: uppercase; font-weight: 700; margin-right: .5rem; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #161616; }
  a { color: #9cf; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def add_docs(app: FastAPI) -> None:
    """Add `/docs` to the application."""

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
        return HTMLResponse(render(app.openapi()), headers=headers)


def render(described: dict[str, Any]) -> str:
    """The page for an OpenAPI description."""
    info = described["info"]
    calls = [
        (method, path, operation)
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    schemas = described.get("components", {}).get("schemas", {})
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{escape(info['title'])}: HTTP calls</title><style>{STYLE}</style>",
        f"<h1>{escape(info['title'])}</h1><p>{escape(info.get('description', ''))}</p>",
        "<p>The same for programs: <a href=openapi.json>openapi.json</a></p><ul>",
        *(f"<li><a href='#{_anchor(m, p)}'>{m.upper()} {escape(p)}</a>" for m, p, _ in calls),
        "</ul>",
        *(_call(method, path, operation) for method, path, operation in calls),
        "<h2 id=schemas>Schemas</h2>",
        *(_schema(name, schema) for name, schema in sorted(schemas.items())),
        "</html>",
    ]
    return "\n".join(parts)


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}-{path.strip('/')}", quote=True)


def _call(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f"<h2 id='{_anchor(method, path)}'><span class=method>{method}</span>"
        f"<code>{escape(path)}</code></h2>",
        f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>",
    ]
    if parameters := operation.get("parameters"):
        rows = [
            (f"{p['name']} ({p['in']})", _kind(p["schema"]), p.get("description", ""))
            for p in parameters
        ]
        parts.append(_table(("parameter", "type", "what it is"), rows))
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body, as <code>{escape(media_type)}</code>: {_kind(content['schema'])}")
        examples = [one["value"] for one in content.get("examples", {}).values()]
        for example in [*examples, *([content["example"]] if "example" in content else [])]:
            parts.append(f"<pre>{escape(json.dumps(example))}</pre>")
    answers = [
        (
            status,
            ", ".join(
                f"{escape(media_type)} {_kind(content.get('schema', {}))}"
                for media_type, content in response.get("content", {}).items()
            ),
            response.get("description", ""),
        )
        for status, response in sorted(operation["responses"].items())
    ]
    parts.append(_table(("status", "answer", "when"), answers))
    return "\n".join(parts)


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (
            name_ + ("" if name_ in required else " (optional)"),
            _kind(field) + _bounds(field),
            field.get("description", ""),
        )
        for name_, field in schema.get("properties", {}).items()
    ]
    return (
        f"<h3 id='{escape(name, quote=True)}'>{escape(name)}</h3>"
        f"<p>{escape(schema.get('description', ''))}</p>"
        + _table(("field", "type", "what it is"), rows)
    )


def _kind(schema: dict[str, Any]) -> str:
    """A short description of a schema as HTML; a link for a named schema."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2], quote=True)
        return f"<a href='#{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(_kind(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return escape(str(schema.get("format") or schema.get("type") or "any"))


def _bounds(schema: dict[str, Any]) -> str:
    labels = {"minimum": "from", "maximum": "to", "default": "default"}
    words = [f"{word} {json.dumps(schema[key])}" for key, word in labels.items() if key in schema]
    return f"<br><small>{escape(', '.join(words))}</small>" if words else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    """A table whose first and last cells are text and whose second is HTML."""
    if not rows:
        return ""
    body = [
        f"<tr><td><code>{escape(first)}</code><td>{second}<td>{escape(last)}"
        for first, second, last in rows
    ]
    return f"<table><tr><th>{'<th>'.join(head)}{''.join(body)}</table>"
