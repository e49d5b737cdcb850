"""The xDS control plane: Plan in, Envoy resources out, over SotW and delta streams.

What others call (everything else may change):

- `build_resources(gateway, options, *, sites=(), cache=None) -> Resources`: pure; type URL → name → `Resource`.
- `BuildOptions`: every number in the generated configuration, with its reason.
- `bootstrap(node_id, node_cluster, locality, xds_addresses, admin_address, admin_port, delta=False, lrs=False,
  tls=None, limits=GatewayLimits()) -> dict`.
- `gateway_secrets(certificate, key, ca, server_name)`: the files that a bootstrap with TLS refers to.
- `render(resources) -> dict`: the resources as JSON; `static_bootstrap(resources) -> dict`: a complete static
  configuration for `envoy --mode validate`.
- `XdsServer(holder, options, registry)`: the gRPC services. `.add_to(server)` before the server starts;
  `.status() -> dict`; `.convergence(gateway)` and `await .wait_acked(gateway, timeout_s, nodes=0)` tell how far the
  connected proxies are.
"""

from pointsman.xds.bootstrap import bootstrap, gateway_secrets
from pointsman.xds.build import BuildCache, BuildOptions, build_resources
from pointsman.xds.convergence import Convergence
from pointsman.xds.generate.options import GatewayTls, GatewayTracing
from pointsman.xds.limits import GatewayLimits
from pointsman.xds.render import render, static_bootstrap
from pointsman.xds.resources import Resource, Resources
from pointsman.xds.server import XdsServer

__all__ = [
    "BuildCache",
    "BuildOptions",
    "Convergence",
    "GatewayLimits",
    "GatewayTls",
    "GatewayTracing",
    "Resource",
    "Resources",
    "XdsServer",
    "bootstrap",
    "build_resources",
    "gateway_secrets",
    "render",
    "static_bootstrap",
]
