"""What the control plane serves beside discovery, on the same gRPC server.

- `LoadReports(find_gateway, registry, allowed=None)`: load reports of gateways (LRS). `.add_to(server)`,
  `.subscribe(listener)` for every `LoadReport`, `.table` and `.status(node="")` to read.
- `ClientStatus(streams)`: each proxy's configuration as it stands (CSDS). `.add_to(server)`.
- `add_health(server, holder, health=None) -> GrpcHealth`: the discovery services in `grpc.health.v1`.
- `add_reflection(server, names=())`: reflection for the control plane's services and for `names`.

All of it for a server with an `XdsServer` called `xds`:

    loads = LoadReports(xds.find_gateway, registry)
    loads.add_to(server)
    ClientStatus(xds.streams).add_to(server)
    health = add_health(server, holder)
    add_reflection(server)
"""

from pointsman.xds.services.client_status import ClientStatus
from pointsman.xds.services.health import add_health
from pointsman.xds.services.load import Load, LoadReport, Place
from pointsman.xds.services.load_reports import LoadReports
from pointsman.xds.services.load_table import LoadRow, LoadTable
from pointsman.xds.services.reflection import add_reflection

__all__ = [
    "ClientStatus",
    "Load",
    "LoadReport",
    "LoadReports",
    "LoadRow",
    "LoadTable",
    "Place",
    "add_health",
    "add_reflection",
]
