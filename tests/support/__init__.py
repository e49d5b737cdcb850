"""Shared by the tests: real processes, ports, small servers and clients."""
