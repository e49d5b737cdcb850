"""Protocols of the picker that others may speak."""
