"""The endpoint picker: which endpoint serves a request, told to Envoy over ext_proc.

    Picker(clock, policy=...)            state and verbs: apply, pick, feedback, signals, explain, stats
    Scraper(picker, holder).run()        keeps the picker's signals fresh until cancelled
    add_services(server, picker, reg)    ExternalProcessor and AccessLogService on a grpc.aio server
    add_health(server, holder, health)   their names in grpc.health.v1: SERVING from the first Plan until `drain()`

The way of a request: `server` → `exchange` (protocol) → `request` (body) → `picker`: `filters` → `prefix`, `signals`,
`cost` → `pick`; its outcome comes back through `feedback` into `inflight`.
"""

from pointsman.core.model import Objective
from pointsman.extproc.admission import Admission
from pointsman.extproc.decision import Decision, PickRequest
from pointsman.extproc.exchange import Exchange
from pointsman.extproc.feedback import Feedback
from pointsman.extproc.health import add_health
from pointsman.extproc.pick import PickPolicy
from pointsman.extproc.picker import Picker, PickerStats
from pointsman.extproc.scrape import ScrapeOptions, Scraper
from pointsman.extproc.server import add_services
from pointsman.extproc.tracing import PickTracer

__all__ = [
    "Admission",
    "Decision",
    "Exchange",
    "Feedback",
    "Objective",
    "PickPolicy",
    "PickRequest",
    "PickTracer",
    "Picker",
    "PickerStats",
    "ScrapeOptions",
    "Scraper",
    "add_health",
    "add_services",
]
