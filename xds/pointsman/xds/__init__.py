"""The xDS control plane: Plan in, Envoy resources out, over SotW and delta streams.

What others call (everything else may change):

- `build_resources(gateway, options, *, sites=(), cache=None) -> Resources`: pure; type URL → name → `Resource`.
- `BuildOptions`: every number in the generated configuration, with its reason.
- `bootstrap(node_id, node_cluster, locality, xds_addresses, admin_address, admin_port, delta=False) -> dict`.
- `render(resources) -> dict`: the resources as JSON; `static_bootstrap(resources) -> dict`: a complete static
  configuration for `envoy --mode validate`.
"""

from pointsman.xds.bootstrap import bootstrap
from pointsman.xds.build import BuildCache, BuildOptions, build_resources
from pointsman.xds.render import render, static_bootstrap
from pointsman.xds.resources import Resource, Resources

__all__ = [
    "BuildCache",
    "BuildOptions",
    "Resource",
    "Resources",
    "bootstrap",
    "build_resources",
    "render",
    "static_bootstrap",
]
