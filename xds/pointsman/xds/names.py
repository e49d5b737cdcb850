"""Names that are not served here: `xdstp://` names and resource locators. To their clients they do not exist."""

from __future__ import annotations

from typing import Final

from envoy.service.discovery.v3 import discovery_pb2

XDSTP: Final = "xdstp://"

KEPT: Final = 16
"""Names remembered per stream; one is enough to know what is wrong."""


class ForeignNames:
    """Such names on one stream, the first few of them in order."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: list[str] = []

    def note(self, request: discovery_pb2.DiscoveryRequest | discovery_pb2.DeltaDiscoveryRequest) -> tuple[str, ...]:
        """Those that a request asks for and that were not noted before."""
        if isinstance(request, discovery_pb2.DeltaDiscoveryRequest):
            names, locators = request.resource_names_subscribe, request.resource_locators_subscribe
        else:
            names, locators = request.resource_names, request.resource_locators
        found = [name for name in names if name.startswith(XDSTP)] + [locator.name for locator in locators]
        new = [name for name in dict.fromkeys(found) if name not in self.names][: KEPT - len(self.names)]
        self.names += new
        return tuple(new)
