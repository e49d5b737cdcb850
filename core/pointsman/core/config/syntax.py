"""Rules for single strings: names, hosts, paths, durations, headers. A rule answers None or (what, mend)."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime

from pointsman.core.config.document import shown
from pointsman.core.config.schema import Complaint

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?\Z")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+\Z")
_PATH = re.compile(r"(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+\Z")
_DURATION = re.compile(r"([0-9]{1,5}(?:h|ms|m|s)){1,4}\Z")
_DURATION_PART = re.compile(r"([0-9]{1,5})(h|ms|m|s)")
_UNIT_MS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_SERVICE = re.compile(r"\.?[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*\Z")
_METHOD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*\Z")


def dns_label(value: str) -> Complaint | None:
    """A DNS-1123 label: namespaces, sites."""
    if len(value) <= 63 and _LABEL.match(value):
        return None
    return f"{shown(value)} is not a valid name", "expected lower-case letters, digits and - only, up to 63"


def dns_subdomain(value: str) -> Complaint | None:
    """A DNS-1123 subdomain: names of most objects, section names."""
    if len(value) <= 253 and all(_LABEL.match(part) for part in value.split(".")):
        return None
    return f"{shown(value)} is not a valid name", "expected lower-case letters, digits, - and . only, up to 253"


def label_value(value: str) -> Complaint | None:
    """The value of a Kubernetes label."""
    if len(value) <= 63 and _LABEL_VALUE.match(value):
        return None
    return f"{shown(value)} is not a label value", "expected at most 63 of letters, digits, -, _ and ."


def hostname(value: str) -> Complaint | None:
    """A Gateway API `Hostname`: a DNS name, the first label may be `*`."""
    name = value.removeprefix("*.")
    if dns_subdomain(name) is None and not name.replace(".", "").isdigit():
        return None
    return f"{shown(value)} is not a host name", "expected one in lower case, as api.example.com or *.example.com"


def ip_address(value: str) -> Complaint | None:
    """An IPv4 or IPv6 literal without brackets, zone and port."""
    if canonical_ip(value) is None:
        return f"{shown(value)} is not an IP address", "expected one such as 10.0.0.1 or fd00::1"
    return None


def canonical_ip(value: str) -> str | None:
    """The address in its one usual spelling, None if it is none."""
    if "%" in value:
        return None
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return None


def duration(value: str) -> Complaint | None:
    """A GEP-2257 duration."""
    if _DURATION.match(value):
        return None
    return f"{shown(value)} is not a duration", "expected numbers with h, m, s or ms, such as 90s or 1m30s"


def duration_ms(value: str) -> int:
    """Milliseconds of a valid GEP-2257 duration."""
    return sum(int(number) * _UNIT_MS[unit] for number, unit in _DURATION_PART.findall(value))


def timestamp(value: str) -> Complaint | None:
    """An RFC 3339 time with a zone."""
    if timestamp_us(value) is None:
        return f"{shown(value)} is not a time", "expected one such as 2026-05-01T12:00:00Z"
    return None


def timestamp_us(value: str) -> int | None:
    """Microseconds since the year 1 in UTC, None if it is not a time with a zone."""
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    offset = parsed.utcoffset()
    if offset is None:
        return None
    since = parsed.replace(tzinfo=None) - datetime.min - offset
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def header_name(value: str) -> Complaint | None:
    """An HTTP field name."""
    if len(value) <= 256 and _TOKEN.match(value):
        return None
    return f"{shown(value)} is not a header name", "expected letters, digits and -"


def header_value(value: str) -> Complaint | None:
    """An HTTP field value: printable ASCII inside, no white space around."""
    if 1 <= len(value) <= 4096 and all("\x20" <= c <= "\x7e" or c == "\t" for c in value) and value.strip() == value:
        return None
    return f"{shown(value)} is not a header value", "expected 1 to 4096 printable ASCII characters"


def path(value: str) -> Complaint | None:
    """A path to compare a request's normalised path with (Gateway API's rules for Exact and PathPrefix)."""
    if not value.startswith("/"):
        return f"{shown(value)} is not a path", "expected it to begin with /"
    whole = value.lower() + ("/" if value.endswith(".") else "")
    for part in ("//", "/./", "/../", "%2f", "#"):
        if part in whole:
            return f"{shown(value)} can't match: it contains {part}", "paths are normalised before they are compared"
    if len(value) > 1024 or not _PATH.match(value):
        return f"{shown(value)} is not a path", "expected at most 1024 characters that may stand in a URL path"
    return None


def grpc_service(value: str) -> Complaint | None:
    """A full gRPC service name."""
    if len(value) <= 1024 and _SERVICE.match(value):
        return None
    return f"{shown(value)} is not a gRPC service", "expected package.Service"


def grpc_method(value: str) -> Complaint | None:
    """A gRPC method name."""
    if len(value) <= 1024 and _METHOD.match(value):
        return None
    return f"{shown(value)} is not a gRPC method", "expected one word such as Generate"
