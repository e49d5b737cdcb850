"""Structured logs on standard error: one line per event that matters, readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, Literal

import structlog

from pointsman.app.log_limit import RepeatLimit

Format = Literal["auto", "console", "json"]


class LossyLogger(structlog.PrintLogger):
    """Prints lines to a stream, and loses those that it does not take: its reader is gone, or its disk is full.

    A log call stands before many an act that matters, such as leaving a site: to raise there would prevent the act.
    """

    def msg(self, message: str) -> None:
        """Print the line, if it can be printed."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def configure_logs(*, level: str = "info", format_: Format = "auto") -> None:
    """Set up structlog for this process. Called once, by the command line.

    `auto` writes for people on a terminal and JSON lines otherwise. Prompts and secrets are never passed to a logger.
    Lines that repeat are limited (see `RepeatLimit`); no log call fails (see `LossyLogger`).
    """
    stream = sys.stderr

    def logger(*_: Any) -> LossyLogger:
        return LossyLogger(stream)

    console = format_ == "console" or (format_ == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        if console
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            RepeatLimit(),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=logger,
    )
