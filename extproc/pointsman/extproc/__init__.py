"""The endpoint picker: Envoy ext_proc requests in, ordered endpoint lists out; access logs back in."""
