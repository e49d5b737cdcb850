"""docs/configuration.md as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import inspect as msgspec_inspect

from pointsman.app.reference import texts_gateway, texts_pools, texts_rollout, words
from pointsman.app.reference.fields import UndocumentedError, owner_of, rows, structs
from pointsman.app.reference.names import NAMES, places
from pointsman.core.config.kinds import GROUPS
from pointsman.core.config.meta import Resource

TEXTS: Final[Mapping[str, Mapping[str, str]]] = {**texts_gateway.TEXTS, **texts_pools.TEXTS, **texts_rollout.TEXTS}

ELSEWHERE: Final[Mapping[str, str]] = {
    "FailoverPolicy": "failover-policy.md#fields",
    "TrafficOperation": "failover-policy.md#trafficoperation",
}
"""Kinds whose fields have their meaning, with the reason for each default, on a page of their own."""

ABOUT: Final[Mapping[str, str]] = {
    "GatewayClass": "Says whose the Gateways of a class are. The class `pointsman` needs none.",
    "Gateway": "A group of Envoy proxies with the same listeners.",
    "HTTPRoute": "HTTP requests to pools: header routes, splits.",
    "GRPCRoute": "gRPC calls to pools.",
    "ReferenceGrant": "Lets objects of other namespaces refer to objects in this one.",
    "InferencePool": "Interchangeable model servers.",
    "EndpointSlice": "Endpoints of one pool at one site. Slices without our labels are left alone.",
    "InferenceObjective": "What requests that name it (`x-gateway-inference-objective`) can bear.",
    "InferenceModelRewrite": "Models that requests of a pool are renamed to: aliases, and splits between models or "
    "LoRAs of one pool ([models](models.md)).",
    "InferencePoolImport": "A pool of the same name in other clusters.",
    "Site": "A cluster or region that holds endpoints.",
    "InferenceFleet": "One model served from several sites, as a single backend of a route.",
    "RolloutPolicy": "Brings a canary in step by step ([rollouts](rollouts.md)).",
    "FailoverPolicy": "Which sites serve a pool in which order, when one is left, and the way back.",
    "TrafficOperation": "An act on traffic as an object: drain, evacuate, failover, freeze.",
}

HEAD: Final = """# Configuration

Made from the code by `make docs`; a test fails when it is out of date, and when a field, an annotation, a label, a
condition or a reason has no text.

A folder of manifests is read as a whole (`pointsman up --config FOLDER`): files `*.yaml`, `*.yml` and `*.json`, at any
depth. A change takes effect within a second of being saved, or not at all: with any problem the last good configuration
stays, and log, `pointsman status` and the metric `pointsman_config_reload_success` tell file, line, field and mend.
`pointsman validate FOLDER` tells the same without starting anything. Kinds of other API groups are left alone.
**A field that is not acted on is refused, not ignored.**

In the tables *type* is what is expected, *default* what holds where a field is left out (nothing: it is simply not
there). `[]` in a path is an entry of a list.
"""

COMMON: Final = """## Every manifest

| field | type | default | meaning |
|---|---|---|---|
| `apiVersion`, `kind` | string | required | Which kind it is, from the list above. |
| `metadata.name` | name | required | Its name. |
| `metadata.namespace` | DNS label | `default` | Its namespace; Sites and GatewayClasses have none. |
| `metadata.labels` | map to: label value | | Policies select Sites by them. |
| `metadata.annotations` | map to: string | | Ours are [below](#annotations-and-labels); a misspelt one is refused. |
| `metadata.creationTimestamp` | time (RFC 3339) | | Of two objects in conflict the older one wins. |

Everything else in `metadata`, and `status`, is what an API server writes: accepted and not read.
"""


def configuration() -> str:
    """The whole page.

    Raises:
        UndocumentedError: something has no text.
    """
    return "\n".join(_lines()) + "\n"


def undocumented() -> list[str]:
    """Fields without a text, as `module.Struct.field`; for kinds with a page of their own none is needed here."""
    found = []
    for name, kind in _kinds():
        if name in ELSEWHERE:
            continue
        known, _ = rows(kind)
        found += [f"{row.owner}.{row.field}" for row in known if not TEXTS.get(row.owner, {}).get(row.field)]
    return sorted(set(found))


def forgotten() -> list[str]:
    """Texts whose field is gone, as `module.Struct.field`."""
    fields = {
        owner_of(struct): {field.encode_name for field in _fields(struct)}
        for _, kind in _kinds()
        for struct in structs(kind)
    }
    return sorted(
        f"{owner}.{field}" for owner, texts in TEXTS.items() for field in texts if field not in fields.get(owner, set())
    )


def _kinds() -> Iterator[tuple[str, type[Resource]]]:
    seen: set[str] = set()
    for group in GROUPS.values():
        for name, struct in group.kinds.items():
            if name not in seen:
                seen.add(name)
                yield name, struct


def _lines() -> Iterator[str]:
    yield HEAD
    yield "| kind | apiVersion | |"
    yield "|---|---|---|"
    for name, _ in _kinds():
        if name not in ABOUT:
            raise UndocumentedError(f"the kind {name} has no text in reference/page.py, ABOUT")
        versions = [f"`{group}/{number}`" for group, one in GROUPS.items() for number in one.versions.get(name, ())]
        yield f"| [{name}](#{name.lower()}) | {', '.join(versions)} | {ABOUT[name]} |"
    later = sorted({kind for group in GROUPS.values() for kind in group.not_yet})
    yield ""
    yield f"Refused so far: {', '.join(later)}."
    yield ""
    yield COMMON
    for name, kind in _kinds():
        yield from _section(name, kind)
    yield from _annotations()
    yield from _words()


def _section(name: str, kind: type[Resource]) -> Iterator[str]:
    known, refused = rows(kind)
    yield f"## {name}"
    yield ""
    yield ABOUT[name]
    yield ""
    if name in ELSEWHERE:
        yield f"What each field means, and why its default is what it is: [{ELSEWHERE[name]}]({ELSEWHERE[name]})."
        yield ""
        yield "| field | type | default |"
        yield "|---|---|---|"
        for row in known:
            yield f"| `{row.path}` | {_cell(row.kind)} | {row.default} |"
    else:
        yield "| field | type | default | meaning |"
        yield "|---|---|---|---|"
        for row in known:
            text = TEXTS.get(row.owner, {}).get(row.field)
            if not text:
                raise UndocumentedError(f"{row.owner}.{row.field} has no text in reference/texts_*.py")
            yield f"| `{row.path}` | {_cell(row.kind)} | {row.default} | {_cell(text)} |"
    if refused:
        yield ""
        told = "; ".join(f"{', '.join(f'`{one}`' for one in refusal.what)} in `{refusal.path}`" for refusal in refused)
        yield f"Refused so far: {told}."
    yield ""


def _annotations() -> Iterator[str]:
    yield "## Annotations and labels"
    yield ""
    yield "| name | on | values | default | meaning |"
    yield "|---|---|---|---|---|"
    on = places()
    if missing := sorted(on.keys() - NAMES.keys()):
        raise UndocumentedError(f"{', '.join(missing)} has no text in reference/names.py")
    for name in sorted(NAMES):
        one = NAMES[name]
        yield f"| `{name}` | {'; '.join(on[name])} | {one.values} | {one.default} | {_cell(one.text)} |"
    yield ""


def _words() -> Iterator[str]:
    yield "## Reasons: `x-pointsman-reason`"
    yield ""
    yield "A header of every answer that a gateway gives instead of a model server. The body has OpenAI's error shape;"
    yield "gRPC clients get a status. Other values than these are Envoy's own words (`%RESPONSE_CODE_DETAILS%`)."
    yield ""
    yield "| reason | status | meaning |"
    yield "|---|---|---|"
    for reason, (status, text) in sorted(words.REASONS.items()):
        yield f"| `{reason}` | {status} | {_cell(text)} |"
    for title, head, table in (
        ("Why an endpoint was no candidate", "reason", {**words.FILTERED, **words.UNPICKED}),
        ("Conditions of a RolloutPolicy", "condition", words.CONDITIONS),
        ("Phases of a rollout", "phase", words.PHASES),
        ("Notes of rules in the status", "note", words.NOTES),
        ("The state folder", "file", words.STATE_FILES),
    ):
        yield ""
        yield f"## {title}"
        yield ""
        if table is words.STATE_FILES:
            yield "`--state`, `.pointsman` by default. Keep it over restarts, one for each control plane or one that"
            yield "several share; every file is whole at any time. Remove a file only while no control plane runs."
            yield ""
        yield f"| {head} | meaning |"
        yield "|---|---|"
        for word, text in table.items():
            yield f"| `{word}` | {_cell(text)} |"
    yield ""
    yield "The phases of a site are in [failover-policy.md](failover-policy.md#the-phases-of-a-site), metrics in"
    yield "[metrics.md](metrics.md), commands and exit codes in [cli.md](cli.md)."


def _fields(struct: type) -> Iterator[msgspec_inspect.Field]:
    found = msgspec_inspect.type_info(struct)
    assert isinstance(found, msgspec_inspect.StructType)
    yield from found.fields


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
