"""The three kinds of error that Pointsman reports, and nothing else.

- `ConfigError`: the operator's input is wrong. Names the file, the line, the field, what was found and the mend.
- `PeerError`: a peer broke its protocol (an Envoy NACK, a frame that does not decode).
- `UpstreamError`: a model server misbehaved (metrics that do not parse, a probe that failed).

Bad input never replaces good state: whoever raises one of these has changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with the configuration.

    `file` is relative to the configuration folder, `line` counts from 1 (0: unknown), `field` is a path such as
    `spec.rules[0].backendRefs[1].weight`, `what` says what was found, `mend` says what is expected instead.
    """

    file: str
    line: int
    field: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = f"{place}: {self.field}: {self.what}" if self.field else f"{place}: {self.what}"
        return f"{text} ({self.mend})" if self.mend else text


class PointsmanError(Exception):
    """Base of every error that Pointsman raises on purpose."""


class ConfigError(PointsmanError):
    """The configuration was refused; `problems` is never empty and is sorted by place."""

    def __init__(self, problems: list[Problem] | Problem) -> None:
        found = [problems] if isinstance(problems, Problem) else problems
        self.problems: tuple[Problem, ...] = tuple(sorted(found, key=lambda p: (p.file, p.line, p.field)))
        super().__init__("\n".join(str(p) for p in self.problems))


class PeerError(PointsmanError):
    """A peer (Envoy, another control plane) broke the protocol or refused what we sent."""


class UpstreamError(PointsmanError):
    """A model server gave an answer that cannot be used."""
