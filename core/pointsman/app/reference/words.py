"""Words that operators read: reasons of answers, conditions, phases, notes, files of the state folder."""

from __future__ import annotations

from typing import Final

from pointsman.app import failover_files, rollout_files, traffic_operations
from pointsman.core import wire
from pointsman.core.audit import AUDIT_FILE
from pointsman.core.compile import arms, experiments, residency, rules
from pointsman.core.store import OVERLAY_FILE
from pointsman.extproc import decision, replies

REASONS: Final[dict[str, tuple[str, str]]] = {
    wire.NO_READY_ENDPOINT: (
        "503",
        "No endpoint of the pool may serve: unhealthy, draining, or held back. `pointsman explain ID` tells more.",
    ),
    wire.VARIANT_UNAVAILABLE: (
        "503",
        "The arm that the client chose by header, or was assigned to, has no endpoint. It is never answered by another "
        "variant unless `pointsman.dev/on-unavailable` says so.",
    ),
    decision.NOT_IN_SUBSET: ("503", "A foreign gateway allows some endpoints only, and none of them may serve."),
    decision.OVER_OBJECTIVE: (
        "429",
        "No endpoint can give the first token in the time that the request's objective allows. `Retry-After` says when "
        "to try again.",
    ),
    decision.AT_CAPACITY: (
        "429",
        "The sites that may serve are standbys that carry as much as their `maxConcurrent`. `Retry-After` says when to "
        "try again.",
    ),
    residency.REASON: (
        "451",
        "No site inside the jurisdictions that the request may not leave has the pool, or the header names none that "
        "is known.",
    ),
    replies.TOO_LARGE: ("413", "The request's body is larger than the picker reads."),
    replies.MODEL_UNREAD: (
        "400",
        "The pool's models are renamed, and `model` stands behind what is read of the body (32 MiB, 40,000 brackets: "
        "put it first), or the body's object has more than 1,000 keys.",
    ),
    rules.NO_BACKEND: ("500", "The rule has no backendRefs."),
    rules.NO_WEIGHT: ("503", "All arms of the rule have weight 0."),
    experiments.UNKNOWN_VARIANT: (
        "400",
        "The variant header names a variant that no rule knows, and `pointsman.dev/on-unknown-variant` is `Reject`.",
    ),
}
"""Value of `x-pointsman-reason` → status, and meaning."""

UNPICKED: Final[dict[str, str]] = {
    decision.UNKNOWN_POOL: "The picker has no such pool (yet); the request goes on without a pick.",
}
"""Reasons in decisions that clients never see."""

FILTERED: Final[dict[str, str]] = {
    "residency": "The request may not leave its jurisdictions.",
    "not-in-subset": "The gateway does not allow it.",
    "unhealthy": "Not ready, or found dead.",
    "draining": "It gets no new requests.",
    "site-draining": "Its site gets no new requests.",
    "model-missing": "It is known to serve other models.",
    "held-back": "Its site failed, or takes only a share of the requests as yet.",
    "higher-tier": "A site of a lower tier serves.",
    "full": "Its site carries all that it may.",
    "gone": "Nobody listens there, and what else might serve is full.",
}
"""Why an endpoint was no candidate (`pointsman explain`)."""

NOTES: Final[dict[str, str]] = {
    "ArmUnavailable": f"An arm with a weight has `{arms.NO_ENDPOINT}` or `{arms.NOT_READY}`; the note says who gets "
    "its share.",
    "ArmWithoutWeight": "An arm is new since weights were set at run time and gets nothing until they name it.",
    "FellBack": "All arms of the rule are down, and it does what the next wider rule does.",
    "MirrorVanished": "The pool that requests are mirrored to is gone.",
    "ModelsNotRenamed": "The rule's calls are gRPC, whose bodies are not read: an InferenceModelRewrite of the pool "
    "changes nothing there.",
    "ModelsNotRenamedWithoutPicker": "A pool with an InferenceModelRewrite fails open: while the picker is away, "
    "requests keep the models that clients wrote. With `FailClose` they get 503 then.",
    "OverlayDropped": "Weights that were set fit no arm any more: those of the manifest hold.",
    "PoolVanished": "A weight is set for a pool that is no arm any more.",
    "RuleVanished": "Weights are set for a rule that is gone; they hold again if it comes back. `pointsman weights "
    "clear` forgets them.",
}
"""Notes of rules in the status."""

CONDITIONS: Final[dict[str, str]] = {
    "Progressing": "It is in a step, or at 100 % and watched.",
    "Paused": "It waits: for a person, for data, or for capacity.",
    "Aborted": "It was taken back, or is about to be.",
    "Completed": "The canary has everything.",
}
"""Conditions of a RolloutPolicy."""

PHASES: Final[dict[str, str]] = {
    "Progressing": "In a step; its time counts once every connected gateway has the weight.",
    "Paused": "A person is waited for; bad checks still roll back.",
    "Holding": "The step's time is over, and data or capacity is missing; it goes on by itself.",
    "Promoting": "Everything goes to the canary, and is watched as the last step says.",
    "Completed": "Done; `pointsman rollout undo` goes back.",
    "Aborting": "The canary's weight is taken away; not every gateway has said so yet.",
    "Aborted": "Taken back everywhere; `pointsman rollout retry` begins again.",
}
"""Phases of a rollout; those of sites stand in docs/failover-policy.md."""

STATE_FILES: Final[dict[str, str]] = {
    OVERLAY_FILE: "Weights and mirrors that were set at run time, and by whom.",
    AUDIT_FILE: "The audit log: a JSON object a line, each with the hash of the line before.",
    f"{rollout_files.FOLDER}/NAMESPACE.NAME.json": "A rollout: phase, step, evidence.",
    f"{failover_files.FOLDER}/KIND_NAMESPACE_NAME.json": "A failover policy: phases, holds, budgets, records.",
    traffic_operations.FILE: "TrafficOperations that were done, so that none is done twice.",
    ".lock, .leader": "Locks between control planes that share the folder; they end with their process.",
    "envoy/NAMESPACE.NAME/": "Bootstrap and log of an Envoy that `pointsman up` started. Made anew at each start.",
    "simulator/": "Specification and log of the simulated pools. Made anew at each start.",
}
"""What is in the state folder (`--state`, `.pointsman`)."""
