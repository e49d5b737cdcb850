"""Manifests to the Plan, by the rules of Gateway API: `compile_plan(manifests, overlay)`."""

from pointsman.core.compile.plan import compile_plan

__all__ = ["compile_plan"]
