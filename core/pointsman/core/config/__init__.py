"""Manifests from a folder: read, validated as a whole, watched.

`load(folder)` gives `Manifests` or raises `ConfigError` with every problem; `ConfigWatcher` calls back on each change.
"""

from pointsman.core.config.load import load
from pointsman.core.config.manifests import Ignored, Manifests
from pointsman.core.config.watch import ConfigWatcher

__all__ = ["ConfigWatcher", "Ignored", "Manifests", "load"]
