"""The reference of FailoverPolicy and TrafficOperation agrees with the code: each field, and each default."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pointsman.core.config.failover_kinds import FailoverPolicySpec
from pointsman.core.config.kinds import struct_of
from pointsman.core.config.operation_kinds import TrafficOperationSpec
from pointsman.core.config.schema import Fields, read
from pointsman.core.config.source import read_text
from pointsman.core.model import HealthPolicy, RetryPolicy
from pointsman.xds.generate.options import BuildOptions

PAGE = (Path(__file__).parents[2] / "docs" / "failover-policy.md").read_text(encoding="utf-8")
PARTS = {
    "FailoverPolicy": PAGE.partition("## TrafficOperation")[0],
    "TrafficOperation": PAGE.partition("## TrafficOperation")[2],
}
KINDS: dict[str, type[Fields]] = {"FailoverPolicy": FailoverPolicySpec, "TrafficOperation": TrafficOperationSpec}
INNER = {"targetRefs", "tiers[].siteSelector"}
"""Not written out: they have the fields that Kubernetes' own have."""

CONTAINERS = {"tiers"}
"""Described themselves, beside their fields."""


def described(kind: str) -> dict[str, str]:
    """Field to default, of all rows of the tables."""
    found = {}
    for line in PARTS[kind].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        for name in re.findall(r"`([^`]+)`", cells[0]) if line.startswith("| `") else []:
            found[name] = cells[1]
    return found


def fields(struct: type[msgspec.Struct], prefix: str = "") -> dict[str, Any]:
    """Field paths to defaults; what holds other fields is gone into."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        path = f"{prefix}{field.encode_name}"
        inner, many = nested(field.type)
        if path in INNER or inner is None:
            default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
            found[path] = default
        else:
            found |= fields(inner, f"{path}{'[]' if many else ''}.")
    return found


def nested(kind: Any) -> tuple[type[msgspec.Struct] | None, bool]:
    """The struct that a field holds, and whether it holds several."""
    many = False
    for _ in range(4):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind, many
        arguments = [one for one in typing.get_args(kind) if one not in {type(None), Ellipsis}]
        many = many or typing.get_origin(kind) is tuple
        if not arguments:
            return None, False
        kind = arguments[0]
    return None, False


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_is_described_and_no_other(kind: str) -> None:
    assert set(described(kind)) - CONTAINERS == set(fields(KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_are_those_of_the_code(kind: str) -> None:
    """Where a default is a value: `5s`, `true`, `5%`, `25%`."""
    for name, default in fields(KINDS[kind]).items():
        text = described(kind)[name]
        values = re.findall(r"`([^`]+)`", text)
        if default in (msgspec.NODEFAULT, None, "", ()) or not values:
            assert not values or default in (None, ""), f"{name}: {text} is not {default!r}"
        else:
            assert values == [str(one).lower() if isinstance(one, bool) else as_text(one) for one in many(default)], (
                name
            )


def many(default: Any) -> list[Any]:
    return list(default) if isinstance(default, tuple) else [default]


def as_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_without_a_policy_gateways_have_the_same_defaults() -> None:
    assert BuildOptions().health() == HealthPolicy()
    assert BuildOptions().retry() == RetryPolicy()


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
def test_the_examples_are_valid(text: str) -> None:
    (document,) = read_text("example.yaml", text).documents
    struct = struct_of(document)
    assert isinstance(struct, type)
    _, problems = read(document, struct)
    assert problems == []
