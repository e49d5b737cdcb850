"""Writes docs/configuration.md."""

from __future__ import annotations

from pathlib import Path

from pointsman.app.reference.page import configuration

Path("docs/configuration.md").write_text(configuration(), encoding="utf-8")
