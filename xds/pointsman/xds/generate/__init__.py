"""The parts of a gateway's configuration, one module per kind of resource; `pointsman.xds.build` puts them together."""
