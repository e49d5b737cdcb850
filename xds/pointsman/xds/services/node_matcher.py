"""Which clients a `ClientStatusRequest` asks about: Envoy's node, string, struct and value matchers. Pure.

Regular expressions and custom matchers are refused. Python's expressions are not RE2's, and one of them can hold up the
process that configures the fleet; prefix, suffix and contains find what an operator looks for.
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3 import base_pb2
from envoy.type.matcher.v3 import node_pb2, number_pb2, string_pb2, struct_pb2, value_pb2
from google.protobuf import struct_pb2 as values

from pointsman.core.errors import PeerError


def matches_any(node: base_pb2.Node, matchers: Iterable[node_pb2.NodeMatcher]) -> bool:
    """Whether one of the matchers fits, or there is none.

    Raises:
        PeerError: a matcher that is not supported.
    """
    found = [_node(matcher, node) for matcher in matchers]  # all of them, so that one that fits hides no bad one
    return any(found) or not found


def _node(matcher: node_pb2.NodeMatcher, node: base_pb2.Node) -> bool:
    """The id and all parts of the metadata."""
    fits = [_struct(entry, node.metadata) for entry in matcher.node_metadatas]
    if matcher.HasField("node_id"):
        fits.append(_string(matcher.node_id, node.id))
    return all(fits)


def _string(matcher: string_pb2.StringMatcher, text: str) -> bool:
    kind = matcher.WhichOneof("match_pattern")
    if kind not in {"exact", "prefix", "suffix", "contains"}:
        raise PeerError(
            f"node matcher: {kind or 'an empty match'} is not supported; use exact, prefix, suffix, contains"
        )
    pattern: str = getattr(matcher, kind)
    if matcher.ignore_case:
        pattern, text = pattern.lower(), text.lower()
    if kind == "exact":
        return text == pattern
    if kind == "prefix":
        return text.startswith(pattern)
    if kind == "suffix":
        return text.endswith(pattern)
    return pattern in text


def _struct(matcher: struct_pb2.StructMatcher, metadata: values.Struct) -> bool:
    """The value at the end of the path; a path that leads nowhere does not match."""
    value = values.Value(struct_value=metadata)
    for segment in matcher.path:
        if value.WhichOneof("kind") != "struct_value" or segment.key not in value.struct_value.fields:
            return False
        value = value.struct_value.fields[segment.key]
    return _value(matcher.value, value)


def _value(matcher: value_pb2.ValueMatcher, value: values.Value) -> bool:
    held = value.WhichOneof("kind")
    match matcher.WhichOneof("match_pattern"):
        case "present_match":
            fits = matcher.present_match
        case "null_match":
            fits = held == "null_value"
        case "bool_match":
            fits = held == "bool_value" and value.bool_value == matcher.bool_match
        case "double_match":
            fits = held == "number_value" and _number(matcher.double_match, value.number_value)
        case "string_match":
            fits = _string(matcher.string_match, value.string_value) and held == "string_value"
        case "list_match":
            items = value.list_value.values if held == "list_value" else ()
            fits = any(_value(matcher.list_match.one_of, item) for item in items)
        case "or_match":
            fits = any(_value(option, value) for option in matcher.or_match.value_matchers)
        case _:
            raise PeerError("node matcher: a metadata match without a value")
    return fits


def _number(matcher: number_pb2.DoubleMatcher, number: float) -> bool:
    if matcher.WhichOneof("match_pattern") == "exact":
        return number == matcher.exact
    return matcher.range.start <= number < matcher.range.end
