"""`pytest tests/drill --rewrite` writes what the traces answer now into their files; read the diff first."""

from __future__ import annotations

import contextlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # another folder with traces has the same option
        parser.addoption("--rewrite", action="store_true", default=False, help="update the expected replies of traces")
