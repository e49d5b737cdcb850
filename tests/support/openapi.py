"""Does an answer of the admin API fit its description? The part of JSON Schema that the description uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = Any

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_KNOWN = {
    "type", "description", "default", "properties", "required", "items", "enum", "$ref", "additionalProperties",
    "minimum", "maximum", "minItems", "maxItems", "minProperties", "maxProperties", "oneOf",
}  # fmt: skip


def misfits(value: Json, schema: Json, schemas: Json, place: str = "answer") -> Iterator[str]:
    """What does not fit. A property that is not described is a misfit, too: the description is to be complete."""
    if unknown := schema.keys() - _KNOWN:
        raise NotImplementedError(f"the description uses {unknown}")
    if "$ref" in schema:
        yield from misfits(value, schemas[schema["$ref"].rpartition("/")[2]], schemas, place)
        return
    if "oneOf" in schema:
        if all(list(misfits(value, one, schemas, place)) for one in schema["oneOf"]):
            yield f"{place}: fits none of {len(schema['oneOf'])} descriptions"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{place}: {value!r} is no {' or '.join(kinds)}"
    elif isinstance(value, dict):
        yield from _object_misfits(value, schema, schemas, place)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from misfits(item, schema.get("items", {}), schemas, f"{place}[{index}]")
    elif _is(value, "number") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{place}: {value} is out of range"


def _is(value: Json, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS[kind])


def _object_misfits(value: Json, schema: Json, schemas: Json, place: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    yield from (f"{place}.{name} is missing" for name in schema.get("required", ()) if name not in value)
    others = schema.get("additionalProperties", not properties)
    for name, item in value.items():
        if name in properties:
            yield from misfits(item, properties[name], schemas, f"{place}.{name}")
        elif isinstance(others, dict):
            yield from misfits(item, others, schemas, f"{place}.{name}")
        elif not others:
            yield f"{place}.{name} is not described"


def answer_misfits(document: Json, path: str, method: str, status: int, answer: Json) -> list[str]:
    """What does not fit in an answer to `method` on a described `path`."""
    described = document["paths"][path][method]["responses"]
    if str(status) not in described:
        return [f"{method} {path}: status {status} is not described"]
    content = described[str(status)].get("content", {})
    schema = content.get("application/json", {}).get("schema")
    return (
        [] if schema is None else list(misfits(answer, schema, document["components"]["schemas"], f"{method} {path}"))
    )
