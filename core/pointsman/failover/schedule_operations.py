"""TrafficOperations: which are due, which are over, and that none is done twice. Pure.

An operation is done once for its name, uid and content, a scheduled one once for each minute that its cron expression
matches. A run is kept before its command is carried out: after a crash in between, `resume` asks for it again, which
changes nothing where it was done already. Times are wall time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

import msgspec
from msgspec.structs import replace

from pointsman.core.change import Signature
from pointsman.core.config.operation_kinds import TrafficOperation, condition_parts
from pointsman.core.config.syntax import duration_ms, timestamp_us
from pointsman.core.cron import last_match, parse_cron
from pointsman.core.json_text import decode
from pointsman.failover.state import Action, Command, FailoverError

VERSION: Final = 1
LATE_S: Final = 300.0
"""A scheduled operation whose minute was missed, as in a restart, is still begun within this; later it is skipped: a
drill at ten must not begin at noon."""
KEPT_S: Final = 30 * 86_400.0
"""How long runs of operations that are no more are kept for those who look back."""
KEPT: Final = 500
"""And how many of them: the file is written with every run, and an operation may be scheduled for each minute."""
VIA: Final = "TrafficOperation"

_EPOCH_US: Final = 62_135_596_800_000_000
_UNDO: Final = {
    Action.DRAIN: Action.ACTIVATE,
    Action.EVACUATE: Action.ACTIVATE,
    Action.FAILOVER: Action.FAILBACK,
    Action.FREEZE: Action.UNFREEZE,
}


class Status(Enum):
    STARTED = "Started"  # kept, and about to be done
    IN_FORCE = "InForce"
    DONE = "Done"
    ENDING = "Ending"  # about to be undone
    ENDED = "Ended"
    REFUSED = "Refused"
    DRY_RUN = "DryRun"  # tried, and nothing was changed


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A TrafficOperation in plain units. `content` tells its generations apart. `ttl_s`, `deadline_s`: 0, none."""

    key: str
    content: str
    action: Action
    site: str = ""
    pool: str = ""
    endpoint: str = ""
    policy: str = ""
    reason: str = ""
    requested_by: str = ""
    schedule: str = ""
    deadline_s: float = 0.0
    ttl_s: float = 0.0
    abort_if: tuple[tuple[str, float], ...] = ()
    dry_run: bool = False
    force: bool = False


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an operation. `until_s`: when it is undone, 0: when somebody does it."""

    operation: Operation
    status: Status
    at_s: float
    until_s: float = 0.0
    why: str = ""


class Operations(msgspec.Struct, frozen=True, kw_only=True):
    """All runs by their ids, and since when each operation is known."""

    runs: dict[str, Run] = msgspec.field(default_factory=dict)
    known: dict[str, float] = msgspec.field(default_factory=dict)
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Give `command` to the machines that it is about (with `policy` only to that one), and tell `carried_out`.

    `dry_run`: try it, tell what would come of it, and change nothing. `undo`: it ends the run.
    """

    run: str
    command: Command
    policy: str = ""
    dry_run: bool = False
    undo: bool = False


def operation_of(manifest: TrafficOperation) -> Operation:
    """The manifest in plain units."""
    spec, target = manifest.spec, manifest.spec.target
    uid = manifest.metadata.uid if isinstance(manifest.metadata.uid, str) else ""
    is_site = target is not None and target.kind == "Site"
    pool = target.pool if target is not None else ""
    deadline_us = timestamp_us(spec.deadline) if spec.deadline else None
    return Operation(
        key=manifest.key,
        content=hashlib.sha256(uid.encode() + msgspec.json.encode(_written(spec))).hexdigest()[:12],
        action=Action(spec.action.lower()),
        site=target.name if target is not None and is_site else "",
        pool=pool if "/" in pool or not pool else f"{manifest.namespace}/{pool}",
        endpoint=target.name if target is not None and not is_site else "",
        policy=f"FailoverPolicy/{manifest.namespace}/{spec.policy}" if spec.policy else "",
        reason=spec.reason,
        requested_by=spec.requested_by,
        schedule=spec.schedule or "",
        deadline_s=(deadline_us - _EPOCH_US) / 1e6 if deadline_us is not None else 0.0,
        ttl_s=duration_ms(spec.ttl) / 1000 if spec.ttl else 0.0,
        abort_if=tuple(condition_parts(text) for text in spec.abort_if),
        dry_run=spec.dry_run,
        force=spec.force,
    )


def due(state: Operations, operations: Iterable[Operation], now_s: float) -> tuple[Operations, tuple[Order, ...]]:
    """What is to be done now: operations that are new or whose minute has come, and those whose time is up.

    The state is to be saved before the orders are carried out.
    """
    wanted = tuple(operations)
    generations = {_generation(one) for one in wanted}
    known = {name: state.known.get(name, now_s) for name in sorted(generations)}
    runs = {
        run: one
        for run, one in state.runs.items()
        if _lasts(one) or now_s - one.at_s < KEPT_S or _once(one.operation, generations)
    }
    over = [run for run, made in runs.items() if not _lasts(made) and not _once(made.operation, generations)]
    for run in sorted(over, key=lambda run: runs[run].at_s)[:-KEPT]:
        del runs[run]
    orders: list[Order] = []
    for one in wanted:
        run = _run_id(one, known[_generation(one)], now_s)
        if run and run not in runs:
            until_s = now_s + one.ttl_s if one.ttl_s else 0.0
            runs[run] = Run(operation=one, status=Status.STARTED, at_s=now_s, until_s=until_s)
            orders.append(_order(run, runs[run]))
    for run, made in list(runs.items()):
        if made.status is Status.IN_FORCE and made.until_s and now_s >= made.until_s:
            runs[run] = replace(made, status=Status.ENDING, why="its time is up (ttl)")
            orders.append(_order(run, runs[run]))
    return Operations(runs=runs, known=known), tuple(orders)


def resume(state: Operations) -> tuple[Order, ...]:
    """After a restart: what was begun, and nobody knows whether it was done."""
    return tuple(
        _order(run, made) for run, made in state.runs.items() if made.status in {Status.STARTED, Status.ENDING}
    )


def watched(state: Operations, seen: Mapping[str, float], now_s: float) -> tuple[Operations, tuple[Order, ...]]:
    """End operations whose `abortIf` holds: `seen` maps errorRate (a fraction) and ttft.p95 (ms) and the like to what
    clients get now. What is not seen aborts nothing."""
    runs, orders = dict(state.runs), list[Order]()
    for run, made in state.runs.items():
        bounds = [(name, bound) for name, bound in made.operation.abort_if if seen.get(name, 0.0) > bound]
        broken = [f"{name} {seen[name]:g} over {bound:g}" for name, bound in bounds]
        if made.status is Status.IN_FORCE and broken:
            runs[run] = replace(made, status=Status.ENDING, until_s=now_s, why=f"aborted: {'; '.join(broken)}")
            orders.append(_order(run, runs[run]))
    return replace(state, runs=runs), tuple(orders)


def carried_out(state: Operations, order: Order, refusal: str = "") -> Operations:
    """What became of an order; `refusal` is the error that it met, "" for none."""
    made = state.runs[order.run]
    if order.undo:
        # It may have been ended by a person before: then there is nothing left to undo.
        after = replace(made, status=Status.ENDED, why=f"{made.why}; {refusal}" if refusal else made.why)
    elif refusal:
        after = replace(made, status=Status.REFUSED, why=refusal)
    elif order.dry_run:
        after = replace(made, status=Status.DRY_RUN, why="dry run: it would be done")
    else:
        after = replace(made, status=Status.IN_FORCE if made.operation.action in _UNDO else Status.DONE)
    return replace(state, runs={**state.runs, order.run: after})


def operations_to_json(state: Operations) -> bytes:
    """The state as a JSON document."""
    return msgspec.json.encode(state)


def operations_from_json(content: bytes) -> Operations:
    """What was kept.

    Raises:
        FailoverError: it is damaged, or of another version; taken for empty it would repeat every operation.
    """
    try:
        found = decode(content, Operations)
    except msgspec.MsgspecError as error:
        raise FailoverError(f"the saved operations are damaged: {error}; mend them, or move them away") from error
    if found.version != VERSION:
        raise FailoverError(f"the saved operations have version {found.version}, this Pointsman reads {VERSION}")
    return found


def _order(run: str, made: Run) -> Order:
    one, undo = made.operation, made.status is Status.ENDING
    reason = f"{one.reason} ({one.key})"
    return Order(
        run=run,
        command=Command(
            action=_UNDO[one.action] if undo else one.action,
            site=one.site,
            pool=one.pool,
            endpoint=one.endpoint,
            deadline_s=0.0 if undo else one.deadline_s,
            force=one.force and not undo,
            operation=run if one.action in _UNDO else "",
            signature=Signature(
                actor=one.requested_by or VIA, via=VIA, reason=f"{reason}: {made.why}" if undo else reason
            ),
        ),
        policy=one.policy,
        dry_run=one.dry_run,
        undo=undo,
    )


def _written(value: object) -> object:
    """What the manifest says beyond the defaults: a later Pointsman with more fields sees the same operation in it."""
    if not isinstance(value, msgspec.Struct):
        return value
    found = ((field.encode_name, field.default, getattr(value, field.name)) for field in msgspec.structs.fields(value))
    return {name: _written(given) for name, default, given in found if given != default}


def _generation(one: Operation) -> str:
    return f"{one.key}#{one.content}"


def _run_id(one: Operation, known_s: float, now_s: float) -> str:
    """Id of the run that is due now, "" for none: a minute before the operation was known does not count."""
    if not one.schedule:
        return _generation(one)
    minute_s = last_match(parse_cron(one.schedule), now_s, LATE_S)
    if minute_s is None or minute_s < known_s - known_s % 60.0:
        return ""
    return f"{_generation(one)}@{datetime.fromtimestamp(minute_s, UTC):%Y-%m-%dT%H:%MZ}"


def _lasts(made: Run) -> bool:
    return made.status in {Status.STARTED, Status.IN_FORCE, Status.ENDING}


def _once(one: Operation, generations: set[str]) -> bool:
    """Whether the run keeps an operation that is still in the folder from being done again."""
    return not one.schedule and _generation(one) in generations
