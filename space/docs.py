"""The page about the HTTP API, written from its OpenAPI description. No script and no file from elsewhere: the usual
page loads both from a CDN, and this one must work where nothing outside can be reached.
"""

import json
from collections.abc import Iterator
from html import escape

from space.errors import CODES

STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
pre { overflow-x: auto; padding: .75rem; border: 1px solid; border-radius: .3rem }
table { border-collapse: collapse } th, td { text-align: left; padding: .25rem .75rem .25rem 0; vertical-align: top }
h2 { margin-top: 2.5rem }
"""
EXAMPLES = """curl -F text='not four but three' -F image=@three.png HOST/v1/predict?top_k=3
curl -F audio=@three.wav HOST/v1/embed
curl -H 'Content-Type: application/json' -d '[{"text": "three"}, {"text": "four"}]' HOST/v1/predict/batch
# with tokens: -H 'Authorization: Bearer TOKEN'"""


def docs_page(openapi: dict) -> str:
    """Give the page, as HTML."""
    operations = "".join(
        section(method, path, operation, openapi)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    title = escape(openapi["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: HTTP API</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{title}: HTTP API</h1><p>{escape(openapi['info'].get('description', ''))} "
        'For programs: <a href="openapi.json">openapi.json</a>. <a href="./">The page to try it.</a></p>'
        f"<pre>{escape(EXAMPLES)}</pre>{operations}{code_table()}</main></body></html>"
    )


def section(method: str, path: str, operation: dict, openapi: dict) -> str:
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}. "]
    parts.append(f"{escape(operation.get('description', ''))}</p>")
    if parameters := operation.get("parameters"):
        rows = "".join(parameter_row(parameter) for parameter in parameters)
        parts.append(f"<table><tr><th>parameter</th><th>allowed</th><th>meaning</th></tr>{rows}</table>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(details(f"body, {kind}", content["schema"], openapi))
    for status, response in operation.get("responses", {}).items():
        for content in response.get("content", {}).values():
            if status == "200":
                parts.append(details("answer", content["schema"], openapi))
    return "".join(parts)


def parameter_row(parameter: dict) -> str:
    allowed = json.dumps({key: value for key, value in parameter["schema"].items() if key != "title"})
    cells = (parameter["name"], allowed, parameter.get("description", ""))
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def details(title: str, schema: dict, openapi: dict) -> str:
    text = json.dumps(resolved(schema, openapi), indent=2)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def resolved(schema, openapi: dict):
    """Put what a schema refers to in place of the reference; none of ours refers to itself."""
    if isinstance(schema, list):
        return [resolved(item, openapi) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]], openapi)
    return {key: resolved(value, openapi) for key, value in schema.items()}


def code_table() -> str:
    return (
        "<h2>Error codes</h2><table><tr><th>code</th><th>status</th><th>meaning</th></tr>"
        + "".join(rows())
        + ('</table><p>In <code>{"error": {"code", "message", "request_id"}}</code>.</p>')
    )


def rows() -> Iterator[str]:
    for code, (status, meaning) in CODES.items():
        yield f"<tr><td><code>{code}</code></td><td>{status}</td><td>{escape(meaning)}</td></tr>"
