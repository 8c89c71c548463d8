"""The API for people: one page, rendered here from the OpenAPI document, with nothing to be fetched from elsewhere."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

from starlette.responses import Response

from sandboxd.api.docs_style import STYLE
from sandboxd.api.parts import Call

_CODE = re.compile(r"`([^`]+)`")
_STYLE_SHA256 = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_SHA256}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_EXAMPLE = """\
curl http://127.0.0.1:8080/v1/jobs \\
  -H 'Content-Type: application/json' -H 'Prefer: wait=30' \\
  -d '{"image": "host", "command": ["python3", "-c", "print(6 * 7)"], "limits": {"memory": "64Mi"}}'"""


async def page(call: Call) -> Response:
    """GET /docs"""
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return Response(call.parts.documents.page, headers=headers, media_type="text/html")


def render(document: dict[str, Any]) -> str:
    """The whole page."""
    info = document["info"]
    operations = list(_operations(document))
    groups = [tag["name"] for tag in document["tags"]]
    menu = "".join(_menu_group(group, operations) for group in groups)
    body = "".join(_group(group, operations, document) for group in groups)
    schemas = document["components"]["schemas"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(info['title'])} API</title><style>{STYLE}</style></head><body>"
        f'<nav><p class="brand">{escape(info["title"])} <small>{escape(info["version"])}</small></p>'
        f'{menu}<p><a href="#schemas">Schemas</a></p><p><a href="/openapi.json">openapi.json</a></p></nav>'
        f"<main><header><h1>{escape(info['title'])} API</h1>{_prose(info['description'])}"
        f"<pre><code>{escape(_EXAMPLE)}</code></pre></header>{body}"
        f'<section><h2 id="schemas">Schemas</h2>'
        f"{''.join(_schema_section(name, schemas) for name in sorted(schemas))}</section>"
        "</main></body></html>"
    )


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _menu_group(group: str, operations: list[tuple[str, str, dict[str, Any]]]) -> str:
    items = "".join(
        f'<li><a href="#{operation["operationId"]}">{escape(operation["summary"])}</a></li>'
        for _, _, operation in operations
        if group in operation["tags"]
    )
    return f"<h3>{escape(group)}</h3><ul>{items}</ul>"


def _group(
    group: str, operations: list[tuple[str, str, dict[str, Any]]], document: dict[str, Any]
) -> str:
    articles = "".join(
        _article(method, path, operation, document)
        for method, path, operation in operations
        if group in operation["tags"]
    )
    return f"<section><h2>{escape(group)}</h2>{articles}</section>"


def _article(method: str, path: str, operation: dict[str, Any], document: dict[str, Any]) -> str:
    parts = [
        f'<article id="{operation["operationId"]}">',
        f'<h3><span class="method {method.lower()}">{method}</span> <code>{escape(path)}</code></h3>',
        f'<p class="summary">{escape(operation["summary"])} {_scope(operation["security"])}</p>',
        _prose(operation.get("description", "")),
    ]
    if operation["parameters"]:
        parts.append(_table("Parameters", map(_parameter_row, operation["parameters"])))
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        parts.append(_fields("Body", schema, document["components"]["schemas"]))
    parts.append(_table("Answers", map(_answer_row, operation["responses"].items())))
    parts.append("</article>")
    return "".join(parts)


def _scope(security: list[dict[str, list[str]]]) -> str:
    if not security:
        return '<span class="scope">no key</span>'
    scopes = ", ".join(security[0]["key"]) or "any key"
    return f'<span class="scope">{escape(scopes)}</span>'


def _parameter_row(parameter: dict[str, Any]) -> tuple[str, str, str]:
    name = f"<code>{escape(parameter['name'])}</code> <small>{parameter['in']}</small>"
    return name, _type(parameter["schema"]), _inline(parameter.get("description", ""))


def _answer_row(item: tuple[str, dict[str, Any]]) -> tuple[str, str, str]:
    status, answer = item
    if "$ref" in answer:
        return "4xx, 5xx", '<a href="#schema-Problem">Problem</a>', "Refused, or failed."
    content = answer.get("content", {})
    media_types = "<br>".join(escape(media_type) for media_type in content)
    schema: dict[str, Any] = next((part["schema"] for part in content.values()), {})
    kind = _type(schema) if "application/json" in content else media_types
    return status, kind, _inline(answer["description"])


def _schema_section(name: str, schemas: dict[str, Any]) -> str:
    schema = schemas[name]
    summary = _prose(schema.get("description", ""))
    fields = _fields("", schema, schemas)
    return f'<article id="schema-{name}"><h3>{escape(name)}</h3>{summary}{fields}</article>'


def _fields(title: str, schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    if "$ref" in schema:
        schema = schemas[_name_of(schema)]
    if "enum" in schema:
        return f"<p>{_type(schema)}</p>"
    required = schema.get("required", ())
    rows = (
        (
            f"<code>{escape(name)}</code>{' <b>required</b>' if title and name in required else ''}",
            _type(field),
            _inline(field.get("description", "")) + _default(field if title else {}),
        )
        for name, field in schema.get("properties", {}).items()
    )
    return _table(title, rows)


def _table(title: str, rows: Iterator[tuple[str, str, str]]) -> str:
    lines = "".join(
        f"<tr><td>{first}</td><td>{second}</td><td>{third}</td></tr>"
        for first, second, third in rows
    )
    heading = f"<h4>{escape(title)}</h4>" if title else ""
    return f'{heading}<div class="scroll"><table>{lines}</table></div>' if lines else ""


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default in (None, "", []) or isinstance(
        default, dict
    ):  # an object's own schema has its defaults
        return ""
    return f" <small>Default: <code>{escape(json.dumps(default))}</code></small>"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to named ones."""
    if "$ref" in schema:
        name = _name_of(schema)
        return f'<a href="#schema-{name}">{escape(name)}</a>'
    if "anyOf" in schema:
        return " | ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(word))}</code>" for word in schema["enum"])
    if "prefixItems" in schema or schema.get("type") == "array":
        return f"array of {_type(schema.get('items') or {})}"
    if isinstance(schema.get("additionalProperties"), dict) and schema["additionalProperties"]:
        return f"object of {_type(schema['additionalProperties'])}"
    return escape(str(schema.get("format") or schema.get("type", "any")))


def _name_of(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _prose(text: str) -> str:
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    return "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in paragraphs if paragraph)


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))
