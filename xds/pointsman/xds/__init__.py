"""The xDS control plane: Plan in, Envoy resources out, over SotW and delta streams."""
