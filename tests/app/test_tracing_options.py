"""What users say about traces, on the command line or in OpenTelemetry's environment variables."""

from __future__ import annotations

from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from pointsman.app.commands.tracing import chosen_tracing, tracing_flags
from pointsman.app.tracing_options import TracingOptions
from pointsman.app.workers.frames import WorkerOptions


@click.command()
@tracing_flags
def command(**flags: Any) -> None:
    click.echo(repr(chosen_tracing(**flags)))


def outcome(*words: str, **environment: str) -> str:
    return CliRunner().invoke(command, words, env=environment).output.strip()


def test_without_a_collector_nothing_is_traced() -> None:
    assert outcome("--otlp-ratio", "0.5") == "None"
    assert outcome(OTEL_EXPORTER_OTLP_ENDPOINT="") == "None"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:4317", "127.0.0.1:4317"),
        ("[::1]:4317", "[::1]:4317"),
        ("http://collector:4444", "collector:4444"),
        ("http://collector/", "collector:4317"),
        ("http://[::1]", "[::1]:4317"),
    ],
)
def test_where_the_collector_is(text: str, target: str) -> None:
    host, _, port = target.rpartition(":")
    wanted = TracingOptions(host=host.strip("[]"), port=int(port))
    assert wanted.target == target
    assert outcome("--otlp-endpoint", text) == repr(wanted)
    assert outcome(OTEL_EXPORTER_OTLP_ENDPOINT=text) == repr(wanted)
    assert outcome(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=text, OTEL_EXPORTER_OTLP_ENDPOINT="x:1") == repr(wanted)
    assert outcome("--otlp-endpoint", text, OTEL_EXPORTER_OTLP_ENDPOINT="x:1") == repr(wanted)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("https://collector:4317", "without TLS"),
        ("collector", "HOST:PORT"),
        ("http://collector:4318/v1/traces", "no path"),
        ("http://:4317", "HOST:PORT"),
        ("http://collector:port", "HOST:PORT"),
        ("http://[::1", "HOST:PORT"),
    ],
)
def test_a_collector_that_cannot_be(text: str, word: str) -> None:
    assert word in outcome("--otlp-endpoint", text)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in outcome(OTEL_EXPORTER_OTLP_ENDPOINT=text)


@pytest.mark.parametrize(
    ("sampler", "follow_parent", "ratio"),
    [
        ("parentbased_traceidratio", True, 0.25),
        ("parentbased_always_on", True, 1.0),
        ("parentbased_always_off", True, 0.0),
        ("traceidratio", False, 0.25),
        ("always_on", False, 1.0),
        ("always_off", False, 0.0),
    ],
)
def test_samplers_are_called_as_opentelemetry_calls_them(sampler: str, follow_parent: bool, ratio: float) -> None:
    wanted = repr(TracingOptions(host="c", service_name="mine", ratio=ratio, follow_parent=follow_parent))
    environment = {
        "OTEL_TRACES_SAMPLER": sampler,
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_SERVICE_NAME": "mine",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317",
    }
    assert outcome(**environment) == wanted


def test_workers_are_told() -> None:
    options = WorkerOptions(
        fd=3, name="w", address="a", port=1, policy="joint", tracing=TracingOptions(host="c", ratio=0.5)
    )
    assert msgspec.json.decode(msgspec.json.encode(options), type=WorkerOptions) == options
