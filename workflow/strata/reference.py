"""What the schema says, for editors (JSON Schema) and for people (Markdown). `make schema` writes both."""

from __future__ import annotations

import json
from typing import Any

from strata.config import Config
from strata.schema import Model
from strata.suite import Suite


def json_schema() -> str:
    """The JSON Schema of config.yaml."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def markdown() -> str:
    """Every key of a config and of a suite file, with type, default and meaning."""
    parts = ["# Config reference", "Written by `make schema` from the schema that checks the config."]
    told: set[str] = set()
    for title, model in (("config.yaml", Config), ("A suite file", Suite)):
        parts += [f"## {title}", *_sections(model, told)]
    return "\n\n".join(parts) + "\n"


def _sections(model: type[Model], told: set[str]) -> list[str]:
    """A table for the model and one for each it refers to that was not told before."""
    schema = model.model_json_schema()
    definitions: dict[str, Any] = schema.get("$defs", {})
    sections = [_table(schema)]
    for name in [name for name in definitions if name not in told]:
        sections += [f"### {name}", definitions[name].get("description", ""), _table(definitions[name])]
    told |= definitions.keys()
    return [section for section in sections if section]


def _table(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, item in schema["properties"].items():
        default = "**required**" if key in required else f"`{json.dumps(item.get('default'))}`"
        rows.append(f"| `{key}` | {_type(item)} | {default} | {item.get('description', '')} |")
    return "\n".join(rows)


def _type(item: dict[str, Any]) -> str:
    """A property's type in words."""
    if "$ref" in item:
        name = item["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "const" in item:
        return f"`{item['const']}`"
    if "enum" in item:
        return ", ".join(f"`{value}`" for value in item["enum"])
    options = item.get("anyOf") or item.get("oneOf")
    if options:
        return " or ".join(_type(option) for option in options if option.get("type") != "null")
    if item.get("type") == "array":
        return f"list of {_type(item['items'])}"
    if item.get("type") == "object":
        values: Any = item.get("additionalProperties") or next(iter(item.get("patternProperties", {}).values()), {})
        return f"name: {_type(values)}" if isinstance(values, dict) and values else "mapping"
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}.get(
        item.get("type", ""), "any"
    )
