"""What the fields of a RolloutPolicy mean; how it judges is told in docs/rollouts.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TEXTS: Final[Mapping[str, Mapping[str, str]]] = {
    "policy_kinds.RolloutPolicy": {"spec": "What is rolled out, how fast, and what it is judged by."},
    "policy_kinds.RolloutPolicySpec": {
        "targetRefs": "Routes, or rules of them, of the policy's namespace.",
        "stable": "The pool that serves now.",
        "canary": "The pool with the new release.",
        "strategy": "`Canary`: step by step; `BlueGreen`: all at once after a preview; `Shadow`: copies of requests.",
        "steps": "Weights that grow; the last one of a Canary is `100%`.",
        "blueGreen": "Only with `strategy: BlueGreen`.",
        "sites": "One site after the other.",
        "assignment": "Who gets the canary: the same users each time.",
        "onAbort": "What an abort leaves.",
        "analysis": "What it is judged by.",
        "gates": "What must hold before a step.",
        "mode": "`Auto`; `Manual`: verdicts are shown, a person decides; `DryRun`: decides and sets nothing.",
        "paused": "`true`: it stays where it is; bad checks still roll back.",
        "revision": "Any text; another one begins the rollout anew.",
    },
    "policy_kinds.TargetRef": {
        "group": "API group of the route.",
        "kind": "Kind of the route.",
        "name": "Name of the route.",
        "sectionName": "Only this rule; every rule with both pools where it is left out.",
    },
    "policy_kinds.PoolRef": {
        "group": "API group of the pool.",
        "kind": "Kind of the pool.",
        "namespace": "Its namespace; the policy's where it is left out.",
        "name": "Its name.",
        "model": "One of the targets of the pool's InferenceModelRewrite, where both are models of one pool.",
    },
    "policy_kinds.RolloutStep": {
        "weight": "Share of what the manifest gives the two pools together.",
        "pause": "Time under watch once every gateway has the weight, or `Manual`: until a person promotes.",
        "minRequests": "Requests that the canary must have had.",
    },
    "policy_kinds.BlueGreenPlan": {
        "preview": "How long the new pool stands ready before the switch.",
        "keepWarm": "How long it is watched after the switch, and the old pool must be left running.",
    },
    "rollout_parts.SiteOrder": {
        "order": "Sites of gateways, in turn.",
        "mode": "All steps at the first site, then all at the second.",
        "bake": "How long the canary is watched with all requests of a site before the next one begins.",
    },
    "rollout_parts.Assignment": {
        "by": "What identifies a user.",
        "salt": "Another salt draws other users.",
        "fallback": "Requests without it are assigned at random, or are the stable pool's while that has a share.",
    },
    "rollout_parts.AssignedBy": {
        "header": "A header; or a cookie.",
        "cookie": "A cookie; or a header.",
    },
    "rollout_parts.OnAbort": {
        "weight": "What an aborted canary keeps, at most what it has.",
        "sessions": "Users of the canary are stable's with their next request; answers that run are not cut.",
        "within": "An abort that is not everywhere after this time is told.",
    },
    "policy_kinds.Analysis": {
        "interval": "How often it is judged; at least 200 ms.",
        "window": "Evidence that is older, and was enough for a verdict, makes way for new.",
        "onNoData": "When a step's time is over and there is too little data: wait, go on, or take it back.",
        "falseAlarms": "Odds that a good canary is taken back.",
        "missed": "Odds that a bad one passes a step.",
        "checks": "What is looked at; all must be good.",
    },
    "policy_kinds.RolloutCheck": {
        "name": "Its name in status and metrics.",
        "metric": "A metric of the requests, from the gateways' access logs.",
        "compare": "With stable, or alone. Follows from `max`.",
        "max": "With `+`: how much worse than stable it may be; without: how bad at all.",
        "mustCatch": "From where on it must be caught. 3 points, or 25 % (for `+200ms`: twice), beyond `max` where it "
        "is left out.",
        "webhook": "A service that is asked.",
        "prometheus": "A query that is asked.",
        "failureLimit": "Bad verdicts in a row that are forgiven.",
    },
    "policy_kinds.WebhookCheck": {
        "url": "It is posted the step and answers with a verdict ([rollouts](rollouts.md#how-it-judges)).",
        "timeout": "Longest wait; no answer is no data.",
    },
    "policy_kinds.PrometheusCheck": {
        "url": "Address of the Prometheus server.",
        "query": "PromQL with one number as its result.",
        "max": "The number may not be larger; or `min`.",
        "min": "The number may not be smaller; or `max`.",
        "timeout": "Longest wait; no answer is no data.",
    },
    "policy_kinds.Gates": {"capacity": "Room that the canary must have."},
    "policy_kinds.CapacityLimits": {
        "canaryMinFree": "What must stay free of the canary's slots and KV caches after the step.",
        "slotsPerEndpoint": "Requests that one endpoint runs at once (vLLM's `--max-num-seqs`); 0: only KV caches.",
    },
}
"""Struct → field → meaning."""
