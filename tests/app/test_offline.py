"""The commands that start nothing: validate, render, bootstrap."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pointsman.app.cli import main
from pointsman.app.offline import read_plan
from pointsman.xds import BuildOptions, build_resources

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted({path.parent for path in EXAMPLES.rglob("*.yaml")})

DECODERS = {
    "Cluster": "cluster",
    "ClusterLoadAssignment": "endpoint",
    "Listener": "listener",
    "RouteConfiguration": "route",
}


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_example_is_good(folder: Path) -> None:
    result = run("validate", str(folder))
    assert result.exit_code == 0, result.output
    assert ": good: " in result.output


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_second_library_decodes_every_resource_of_the_examples(folder: Path) -> None:
    """`envoy-data-plane` shares no code with protobuf; it reads back what it wrote, field for field."""
    _, plan = read_plan(folder)
    seen = set()
    for gateway in plan.gateways:
        for type_url, resources in build_resources(gateway, BuildOptions(), sites=plan.sites).items():
            name = type_url.rpartition(".")[2]
            module = importlib.import_module(f"envoy_data_plane.envoy.config.{DECODERS[name]}.v3")
            for resource in resources.values():
                message: Any = getattr(module, name).parse(resource.body)
                assert getattr(message, "name", "") or message.cluster_name == resource.name
                assert getattr(module, name).parse(bytes(message)) == message
                seen.add(name)
    assert seen == set(DECODERS)


def test_render_is_the_same_every_time_and_sorted() -> None:
    first, second = (run("render", str(EXAMPLES / "two-sites"), "--as", "xds").output for _ in range(2))
    assert first == second
    rendered = json.loads(first)
    assert list(rendered) == ["CDS", "EDS", "LDS", "RDS"]
    for resources in rendered.values():
        names = [resource["name"] for resource in resources]
        assert names == sorted(names)
        assert all(resource["version"] for resource in resources)


def test_a_changed_weight_changes_one_version(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "two-sites", tmp_path / "config")
    routes = tmp_path / "config" / "routes.yaml"
    before = json.loads(run("render", str(tmp_path / "config"), "--as", "xds").output)
    text = routes.read_text()
    assert "weight: 5}" in text
    routes.write_text(text.replace("weight: 5}", "weight: 20}").replace("weight: 95}", "weight: 80}"))
    after = json.loads(run("render", str(tmp_path / "config"), "--as", "xds").output)
    changed = [
        new["name"]
        for kind in before
        for old, new in zip(before[kind], after[kind], strict=True)
        if old["version"] != new["version"]
    ]
    assert len(changed) == 1
    assert changed[0] in {resource["name"] for resource in after["RDS"]}


def test_a_misspelt_field_is_named_with_its_place(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "two-sites", tmp_path / "config")
    routes = tmp_path / "config" / "routes.yaml"
    text = routes.read_text().replace("weight: 95", "wheight: 95")
    routes.write_text(text)
    line = 1 + text[: text.index("wheight")].count("\n")
    result = run("validate", str(tmp_path / "config"))
    assert result.exit_code == 1
    assert f"routes.yaml:{line}: spec.rules[1].backendRefs[1].wheight" in result.output
    assert "weight" in result.output.partition("(")[2]
    found = json.loads(run("validate", str(tmp_path / "config"), "-o", "json").output)
    assert found["accepted"] is False
    assert found["problems"][0]["line"] == line


def test_bootstrap_names_the_gateway_and_its_control_planes() -> None:
    result = run("bootstrap", "--gateway", "default/main", "--xds", "10.1.2.3:18000", "--xds", "[::1]:18000")
    config = json.loads(result.output)
    assert config["node"]["cluster"] == "default/main"
    endpoints = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"]
    addresses = [e["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] for e in endpoints]
    assert [(a["address"], a["port_value"]) for a in addresses] == [("10.1.2.3", 18_000), ("::1", 18_000)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bootstrap", "--gateway", "main"], "is not namespace/name"),
        (["bootstrap", "--gateway", "default/main", "--xds", "somewhere"], "is not HOST:PORT"),
        (["render", str(EXAMPLES / "two-sites"), "--gateway", "default/other"], "this folder has default/main"),
        (["validate", "/no/such/folder"], "does not exist"),
    ],
)
def test_wrong_words_are_told(words: list[str], said: str) -> None:
    result = run(*words)
    assert result.exit_code != 0
    assert said in result.output


@pytest.mark.parametrize("command", main.list_commands(None))  # type: ignore[arg-type]
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    if command != "trace":
        assert f"pointsman {command}" in result.output.partition("Example")[2]
