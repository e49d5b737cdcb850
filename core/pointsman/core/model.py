"""The Plan: what the fleet should do, in our own terms, between manifests and protobuf.

`compile` makes it from manifests, discovered endpoints and controller state; `pointsman.xds.build` turns it into
Envoy resources and `pointsman.extproc` picks endpoints from it. Nothing here knows YAML, protobuf, sockets or clocks.
All values are immutable; a changed fleet is a new Plan that shares what did not change. Collections are sorted by
name, so that equal fleets are equal Plans.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

TOTAL_WEIGHT = 10_000
"""Weights of a rule add up to this: steps of 0.01 % (design D8)."""

DEFAULT_IDLE_TIMEOUT_MS = 300_000
"""Longest silence of a request or its answer: Envoy's own default. A longer `timeouts.request` makes it as long."""


class Health(Enum):
    """What we know of an endpoint; the names are those of `envoy.config.core.v3.HealthStatus`."""

    UNKNOWN = "UNKNOWN"  # no opinion: Envoy's own probes decide
    HEALTHY = "HEALTHY"
    DEGRADED = "DEGRADED"  # used when the healthy ones do not suffice
    DRAINING = "DRAINING"  # no new requests, running ones finish
    UNHEALTHY = "UNHEALTHY"


class AppProtocol(Enum):
    """What the endpoints of a pool speak (InferencePool `spec.appProtocol`)."""

    HTTP = "http"
    H2C = "kubernetes.io/h2c"


class FailureMode(Enum):
    """What a request gets while no picker answers (InferencePool `endpointPickerRef.failureMode`)."""

    FAIL_OPEN = "FailOpen"  # Envoy's own locality balancing
    FAIL_CLOSE = "FailClose"  # 503


class PickProfile(Enum):
    """How a request reaches the picker (ADR 0002)."""

    BODY = "body"  # one message with the buffered JSON body
    HEADERS = "headers"  # headers only: gRPC streams, uploads, upgrades
    NONE = "none"  # the picker is not asked


class MatchType(Enum):
    """How a string is compared (Gateway API `type` of path, header and query parameter matches)."""

    EXACT = "Exact"
    PREFIX = "PathPrefix"  # paths only: whole segments
    REGEX = "RegularExpression"  # RE2, must match the whole value
    PRESENT = "Present"  # headers only: any value, also an empty one


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """Where something is; `envoy.config.core.v3.Locality`."""

    region: str = ""
    zone: str = ""
    sub_zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTls:
    """TLS towards an endpoint that is a gateway: its certificate must be issued by `ca_file` and name `server_name`,
    which is sent as SNI. `cert_file` and `key_file` are our own certificate, "": none. Files on the proxies' machines.
    """

    server_name: str
    ca_file: str
    cert_file: str = ""
    key_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A site's gateway that takes requests for all endpoints behind it; `probed`: gateways check its health."""

    tls: UpstreamTls | None = None
    probed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A cluster or region that holds endpoints (own kind `Site`).

    `jurisdictions` are residency tags (a hard filter). `usd_per_gpu_hour` is 0 where the price is unknown.
    `max_concurrent` is the number of requests the site is meant to carry, 0: unknown. `rtt_ms` holds the round-trip
    times to other sites that were declared, by site name. `remote`: it is reached through its gateway, whose control
    plane tells its load at `metrics_url` ("": nowhere) to who has the token in `metrics_token_file` ("": to anybody).
    """

    name: str
    locality: Locality = Locality()
    labels: tuple[tuple[str, str], ...] = ()
    jurisdictions: frozenset[str] = frozenset()
    usd_per_gpu_hour: float = 0.0
    max_concurrent: int = 0
    draining: bool = False
    rtt_ms: tuple[tuple[str, float], ...] = ()
    remote: bool = False
    metrics_url: str = ""
    metrics_token_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One model server port. `address` is an IP literal without brackets; `name` is the pod or a given name.

    `kv_events_port` is where its engine publishes KV events, `kv_replay_port` where it repeats them; 0: it does not.
    """

    name: str
    address: str
    port: int
    site: str
    health: Health = Health.UNKNOWN
    weight: int = 1  # ≥ 1: Envoy refuses 0 in EDS
    labels: tuple[tuple[str, str], ...] = ()
    kv_events_port: int = 0
    kv_replay_port: int = 0

    @property
    def key(self) -> str:
        """`ip:port`, IPv6 in brackets: the endpoint's identity in EDS, in picks and in the access log."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteGroup:
    """The endpoints of one pool at one site, with the priority that Envoy gives them (0 first).

    `weight` ≥ 1 divides traffic between groups of equal priority. The rest is for the picker (FailoverPolicy): it goes
    to a `tier` only when no lower one has a ready endpoint, but for a share `spill` of the requests. `share`: of the
    requests that it may send there at all, as in a ramp; 0: only when nothing else is left. Both are in 1/10,000.
    `max_concurrent`: requests in flight there, beyond which it refuses; 0: no limit. With a `hop` the one endpoint is
    the site's gateway.
    """

    site: str
    priority: int
    weight: int
    endpoints: tuple[Endpoint, ...]
    tier: int = 0
    share: int = TOTAL_WEIGHT
    spill: int = 0
    max_concurrent: int = 0
    hop: Hop | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What requests of a pool need that name it (InferenceObjective).

    Negative `priority`: they can be shed. `ttft_ms`: a later first token is useless; None: no bound.
    """

    name: str = ""
    priority: int = 0
    ttft_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """How gateways find bad endpoints of a pool by themselves, and what they may retry there (FailoverPolicy `probe`,
    `outlier` and the ratios of `retry`). docs/failover-policy.md has the reason of each default.

    `edge_interval_ms`: until the second probe after a failed one. An endpoint is ejected after so many consecutive
    errors of a kind, or at `failure_percent` of thirty requests, for `base_ejection_ms` times how often it was before.
    Retries may make up `retry_budget_percent` of the running requests, and `retry_min_concurrency` in any case.
    """

    interval_ms: int = 400
    timeout_ms: int = 600
    edge_interval_ms: int = 100
    unhealthy_threshold: int = 2
    healthy_threshold: int = 2
    consecutive_5xx: int = 25
    consecutive_gateway_errors: int = 3
    consecutive_connect_errors: int = 2
    failure_percent: int = 50
    ejection_interval_ms: int = 1_000
    base_ejection_ms: int = 5_000
    max_ejection_ms: int = 60_000
    retry_budget_percent: float = 100.0
    retry_min_concurrency: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often gateways try a rule's requests again, always before the first byte of an answer.

    `first_byte_timeout_ms`: a try without an answer by then is given up, 0: never. `stall_timeout_ms`: a try that is
    silent for so long, also in the middle of its answer, is ended, 0: never. Only for rules whose answers are streamed.
    """

    num_retries: int = 3
    on_reset: bool = True
    first_byte_timeout_ms: int = 0
    stall_timeout_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRewrite:
    """What the `model` of a request's body becomes (InferenceModelRewrite).

    `model` "": any that no other entry of its pool names. `targets` are (name, share in 1/10,000) in the order of their
    arms; with several, which one it is depends on the arm, and where no arm was chosen on the shares.
    """

    model: str
    targets: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Interchangeable endpoints that serve one model at one or more sites: one EDS cluster (design D5)."""

    name: str  # "namespace/name"
    app_protocol: AppProtocol = AppProtocol.HTTP
    failure_mode: FailureMode = FailureMode.FAIL_OPEN
    groups: tuple[SiteGroup, ...] = ()
    health_path: str = "/health"
    model: str = ""  # what the endpoints serve, "" when it is not said
    objectives: tuple[Objective, ...] = ()
    shed_after_ms: float | None = None  # expected TTFT past which what can be shed is; None: as the picker likes
    health: HealthPolicy | None = None  # None: as the gateways' options say
    rewrites: tuple[ModelRewrite, ...] = ()  # sorted by model

    @property
    def cluster_name(self) -> str:
        """Name of the Envoy cluster, and the value of `xds.cluster_name` that the picker is asked with."""
        return self.name

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints, in the order of the groups."""
        return tuple(e for g in self.groups for e in g.endpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class StringMatch:
    """A header, query parameter or path comparison. `name` is lower-case for headers and empty for paths.

    `invert` (headers only): the header is there and has another value.
    """

    type: MatchType
    value: str
    name: str = ""
    invert: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteMatch:
    """All parts must hold. For a GRPCRoute `path` is `/Service/Method`, exact or a prefix or a regex."""

    path: StringMatch = StringMatch(type=MatchType.PREFIX, value="/")
    method: str = ""  # HTTP method, empty: any
    headers: tuple[StringMatch, ...] = ()
    query: tuple[StringMatch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEdit:
    """Header changes of one filter: `set` replaces, `add` appends, `remove` deletes. Names are lower-case."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedPool:
    """One arm of a rule. The weights of a rule add up to `TOTAL_WEIGHT`, or are all 0 (then it answers 503).

    The order of the arms is kept for ever: with a hash policy users only move towards the arm listed first (D8).
    """

    pool: str
    weight: int
    request_headers: HeaderEdit = HeaderEdit()
    response_headers: HeaderEdit = HeaderEdit()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A share of a rule's requests, in 1/10,000, that is also sent to `pool`; its answers are dropped."""

    pool: str
    share: int

    def __post_init__(self) -> None:
        if not 0 <= self.share <= TOTAL_WEIGHT:
            raise ValueError(f"a mirrored share is from 0 to {TOTAL_WEIGHT}, not {self.share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of a route with exactly one match, already in Gateway API precedence within `VirtualHost.rules`.

    `timeout_ms` and `idle_timeout_ms`: 0 means no limit. A rule without arms answers `direct_status`.
    `hash_header` or `hash_cookie` name what a sticky split hashes, after `hash_salt`. `variant` says that the arms are
    variants that clients choose or are assigned to: one without a healthy endpoint says so in its answer.
    """

    name: str  # "HTTPRoute/namespace/name/rule/match", unique within a gateway
    route: str  # "HTTPRoute/namespace/name"
    match: RouteMatch
    arms: tuple[WeightedPool, ...] = ()
    profile: PickProfile = PickProfile.BODY
    timeout_ms: int = 0
    idle_timeout_ms: int = DEFAULT_IDLE_TIMEOUT_MS
    request_headers: HeaderEdit = HeaderEdit()
    response_headers: HeaderEdit = HeaderEdit()
    hash_header: str = ""  # sticky split by this header's value, empty: random
    direct_status: int = 0
    direct_reason: str = ""
    hash_cookie: str = ""
    hash_salt: str = ""
    mirror: Mirror | None = None
    variant: bool = False
    retry: RetryPolicy | None = None  # None: as the gateways' options say

    def pools(self) -> tuple[str, ...]:
        """Names of the pools that its requests go to."""
        return (*(arm.pool for arm in self.arms), *((self.mirror.pool,) if self.mirror else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualHost:
    """Rules for the same host names, most specific match first. `domains` holds `*` for any host."""

    name: str
    domains: tuple[str, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One port of a gateway. `address` is the bind address (IP literal)."""

    name: str
    address: str
    port: int
    hosts: tuple[VirtualHost, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A group of Envoy proxies that get the same configuration (Gateway API `Gateway`).

    `site` names the Site the proxies stand at ("" when it is not said). `pools` are the pools its rules use, each
    with the priorities seen from that site: near groups first. `receive_timeout_ms`: how long a client may take to send
    a request, 0 for no limit, None for the default. `trusted_hops`: proxies in front of it that are believed.
    """

    name: str  # "namespace/name"
    site: str = ""
    listeners: tuple[Listener, ...] = ()
    pools: tuple[Pool, ...] = ()
    receive_timeout_ms: int | None = None
    trusted_hops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitArm:
    """One arm of a rule and how its share came about; shares are in 1/10,000.

    `declared` is the manifest's, `decided` that of the overlay (or the manifest's), `effective` what gateways get: an
    arm that is `unavailable` (why, empty when it is not) may have handed its share to the others.
    """

    pool: str
    declared: int
    decided: int
    effective: int
    unavailable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The arms of one rule of a route, whatever its matches.

    `rule` is the rule id "HTTPRoute/namespace/name/rule". `overlaid`: the decided weights are those of the overlay,
    which `owner` set (empty: a person) as version `version` of this rule (0: nobody ever did). `sites` holds (site,
    arms) where the gateways at a site get other weights.
    """

    rule: str
    arms: tuple[SplitArm, ...]
    overlaid: bool = False
    owner: str = ""
    version: int = 0
    sticky: str = ""  # "header x-user-id", "cookie user", empty: random
    sites: tuple[tuple[str, tuple[SplitArm, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something an operator should know about a rule: it is in force otherwise than it looks. `reason` is CamelCase."""

    rule: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole fleet. `gateways`, `sites` and `pools` are sorted by name; pool names are unique.

    `splits` (sorted by rule) and `notes` say how the weights came about.
    """

    gateways: tuple[Gateway, ...] = ()
    sites: tuple[Site, ...] = ()
    pools: tuple[Pool, ...] = field(default=())
    splits: tuple[Split, ...] = ()
    notes: tuple[Note, ...] = ()

    def gateway(self, name: str) -> Gateway | None:
        """The gateway of that name, or None."""
        return next((g for g in self.gateways if g.name == name), None)

    def pool_views(self) -> tuple[Pool, ...]:
        """The pools, and each again as every gateway sees it; one that only a gateway lists is there, too."""
        return (*self.pools, *(pool for gateway in self.gateways for pool in gateway.pools))

    def split(self, rule: str) -> Split | None:
        """The split of a rule id, or None."""
        return next((s for s in self.splits if s.rule == rule), None)

    def site(self, name: str) -> Site | None:
        """The site of that name, or None."""
        return next((s for s in self.sites if s.name == name), None)

    def rtt_ms(self, one: str, other: str) -> float:
        """Round-trip time between two sites; what one end declares holds in both directions. 0: not declared."""
        ends = ((self.site(one), other), (self.site(other), one))
        return next((ms for site, far in ends if site for name, ms in site.rtt_ms if name == far), 0.0)
