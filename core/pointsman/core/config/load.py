"""A folder of manifests to validated objects, or a `ConfigError` with everything that is wrong."""

from __future__ import annotations

from pathlib import Path

from pointsman.core.config.check_failover import check_failover
from pointsman.core.config.check_fleets import check_fleets
from pointsman.core.config.check_gateways import check_gateways, drop_foreign_gateways
from pointsman.core.config.check_policies import check_policies
from pointsman.core.config.check_pools import check_own_names, check_pools, drop_service_slices
from pointsman.core.config.check_rewrites import check_rewrites
from pointsman.core.config.check_routes import check_routes
from pointsman.core.config.document import Document
from pointsman.core.config.index import Index, Item, build_index
from pointsman.core.config.kinds import CLUSTER_SCOPED, struct_of
from pointsman.core.config.manifests import Ignored, Manifests
from pointsman.core.config.meta import DEFAULT_NAMESPACE, Resource
from pointsman.core.config.schema import read
from pointsman.core.config.source import Source, read_folder
from pointsman.core.errors import ConfigError, Problem


def load(folder: Path) -> Manifests:
    """The manifests of a folder. Raises ConfigError with all problems; nothing else whatever the files hold."""
    return validate(read_folder(folder))


def validate(source: Source) -> Manifests:
    """The objects of what was read, with every rule checked."""
    problems = list(source.problems)
    items: list[Item[Resource]] = []
    ignored: list[Ignored] = []
    broken: set[tuple[str, str]] = set()
    for document in source.documents:
        struct = struct_of(document)
        if struct is None:
            ignored.append(_ignored(document, "its API group is not Pointsman's"))
            continue
        if isinstance(struct, Problem):
            problems.append(struct)
            broken.add(_identity(document, str(document.data.get("kind"))))
            continue
        value, found = read(document, struct)
        problems += found
        if value is None:
            broken.add(_identity(document, struct.__name__))
        else:
            items.append(Item(value, document))
    index = build_index(items, broken, problems)
    ignored += [
        _ignored(gateway.document, f"class {gateway.object.spec.gateway_class_name} belongs to another controller")
        for gateway in drop_foreign_gateways(index)
    ]
    ignored += [_ignored(item.document, "endpoints of a Service") for item in drop_service_slices(index)]
    problems += check_own_names(items)
    if not source.problems:  # a file that can't be read may hold what the others refer to
        problems += [*check_gateways(index), *check_pools(index), *check_routes(index), *check_policies(index)]
        problems += [*check_failover(index), *check_fleets(index), *check_rewrites(index)]
    if problems:
        raise ConfigError(problems)
    return _manifests(index, ignored)


def _manifests(index: Index, ignored: list[Ignored]) -> Manifests:
    return Manifests(
        gateway_classes=tuple(item.object for item in index.classes.values()),
        gateways=tuple(item.object for item in index.gateways.values()),
        http_routes=tuple(item.object for item in index.http_routes.values()),
        grpc_routes=tuple(item.object for item in index.grpc_routes.values()),
        reference_grants=tuple(item.object for item in index.grants.values()),
        pools=tuple(item.object for item in index.pools.values()),
        endpoint_slices=tuple(item.object for item in index.slices.values()),
        sites=tuple(item.object for item in index.sites.values()),
        rollout_policies=tuple(item.object for item in index.rollout_policies.values()),
        failover_policies=tuple(item.object for item in index.failover_policies.values()),
        operations=tuple(item.object for item in index.operations.values()),
        objectives=tuple(item.object for item in index.objectives.values()),
        rewrites=tuple(item.object for item in index.rewrites.values()),
        fleets=tuple(item.object for item in index.fleets.values()),
        imports=tuple(item.object for item in index.imports.values()),
        ignored=tuple(sorted(ignored)),
    )


def _ignored(document: Document, why: str) -> Ignored:
    metadata = document.data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else ""
    return Ignored(
        file=document.file,
        line=document.line(),
        kind=f"{document.data['apiVersion']} {document.data['kind']}",
        name=str(name or ""),
        why=why,
    )


def _identity(document: Document, kind: str) -> tuple[str, str]:
    """Kind and key of a manifest that was refused, as far as they can be read."""
    metadata = document.data.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    name, namespace = known.get("name"), known.get("namespace") or DEFAULT_NAMESPACE
    return kind, str(name) if kind in CLUSTER_SCOPED else f"{namespace}/{name}"
