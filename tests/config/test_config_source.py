"""The configuration folder: files of any form that people mount, and what is no manifest."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from config.config_fixtures import EXAMPLE, FLEET
from pointsman.core.config import load
from pointsman.core.config.source import MAX_FILE_BYTES, fingerprint, read_folder
from pointsman.core.errors import ConfigError


def told(folder: Path) -> list[str]:
    """The problems of a folder."""
    with pytest.raises(ConfigError) as caught:
        load(folder)
    return str(caught.value).replace(str(folder), "FOLDER").split("\n")


def test_one_file_or_many_in_any_folders_are_the_same(tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    (one / "all.yaml").write_text(FLEET)
    for number, text in enumerate(reversed(FLEET.split("---\n"))):
        place = many / f"part{number % 3}" / "deeper"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.yml").write_text(text)
    assert load(one) == load(many)


def test_json_lists_and_typed_lists_are_flattened(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(FLEET)
    expected = load(tmp_path)
    (tmp_path / "plain.yaml").unlink()
    documents = [tree.data for tree in _documents(FLEET)]
    sites = [d for d in documents if d["kind"] == "Site"]
    for site in sites:
        documents.remove(site)
        del site["kind"], site["apiVersion"]
    typed = {"apiVersion": "pointsman.dev/v1alpha1", "kind": "SiteList", "metadata": {}, "items": sites}
    mixed = {"apiVersion": "v1", "kind": "List", "items": [*documents, typed]}
    (tmp_path / "list.json").write_text(json.dumps(mixed, indent="\t"))
    assert load(tmp_path) == expected


def _documents(text: str) -> list[object]:
    from pointsman.core.config.source import read_text

    return list(read_text("x.yaml", text).documents)


def test_a_problem_in_a_list_names_the_item(tmp_path: Path) -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n- 5\n- apiVersion: pointsman.dev/v1alpha1\n  kind: Site\n"
    (tmp_path / "a.yaml").write_text(text + "  metadata: {name: a}\n  spec: {stat: x}\n")
    assert told(tmp_path) == [
        "a.yaml:4: items[0]: found 5 (expected a manifest)",
        'a.yaml:8: items[1].spec.stat: unknown field (did you mean "state"?)',
    ]


def test_a_mounted_config_map_is_read_once(tmp_path: Path) -> None:
    data = tmp_path / "..2026_05_01"
    data.mkdir()
    (data / "fleet.yaml").write_text(FLEET)
    (tmp_path / "..data").symlink_to("..2026_05_01")
    (tmp_path / "fleet.yaml").symlink_to("..data/fleet.yaml")
    assert len(load(tmp_path).pools) == 3
    before = fingerprint(tmp_path)
    newer = tmp_path / "..2026_05_02"
    newer.mkdir()
    (newer / "fleet.yaml").write_text(FLEET)
    (tmp_path / "..data_tmp").symlink_to("..2026_05_02")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert fingerprint(tmp_path) != before


def test_hidden_files_other_suffixes_and_kustomizations_are_left_out(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    expected = load(tmp_path)
    (tmp_path / ".routes.yaml.swp").write_text("{")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.yaml").write_text("{")
    (tmp_path / "README.md").write_text("{")
    (tmp_path / "routes.yaml~").write_text("{")
    (tmp_path / "kustomization.yaml").write_text("resources: [sites.yaml]")
    assert load(tmp_path) == expected


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "fleet.yaml").write_text(FLEET)
    (elsewhere / "back").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    assert [d.file for d in read_folder(folder).documents] == ["linked/fleet.yaml"] * 8


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").symlink_to("nowhere")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert told(tmp_path) == [
        "broken.yaml: is a broken link",
        "empty.yaml: is empty (delete it if it is meant to hold nothing)",
        f"large.yaml: is larger than {MAX_FILE_BYTES} bytes (split the file)",
        "latin.yaml:2: is not UTF-8 text (save it as UTF-8)",
    ]


def test_names_and_links_of_any_kind_are_told(tmp_path: Path) -> None:
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    (tmp_path / "two\nlines.yaml").write_text("[")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml"))).write_text("[")
    assert told(tmp_path) == [
        "\\udcff.yaml:1: not valid YAML: while parsing a flow node did not find expected node content",
        "circle.yaml: is a broken link",
        "two\\nlines.yaml:1: not valid YAML: while parsing a flow node did not find expected node content",
    ]


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(FLEET, encoding="utf-8-sig")
    assert len(load(tmp_path).pools) == 3


def test_nothing_to_read_is_told(tmp_path: Path) -> None:
    assert told(tmp_path) == ["FOLDER: holds no manifests (expected *.yaml, *.yml or *.json files)"]
    assert told(tmp_path / "x") == ["FOLDER: no such folder (expected a folder of manifests)"]
    (tmp_path / "file").touch()
    assert told(tmp_path / "file") == ["FOLDER: is not a folder (expected a folder of manifests)"]


def test_a_file_that_does_not_parse_hides_no_problem_of_another(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: b: c")
    (tmp_path / "b.yaml").write_text(FLEET.replace("port: 8080", "port: 0"))
    (tmp_path / "c.yaml").write_text(FLEET.split("---\n")[1].replace("name: chat", "name: other"))
    assert told(tmp_path) == [
        "a.yaml:1: not valid YAML: mapping values are not allowed in this context",
        "b.yaml:10: spec.listeners[0].port: found 0 (expected a whole number from 1 to 65535)",
    ]


def test_kinds_of_others_are_listed(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "others.yaml").write_text(
        """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
apiVersion: v1
kind: Service
metadata: {name: web}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: mesh}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: envoy}
spec: {controllerName: example.com/other}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: foreign}
spec: {gatewayClassName: envoy, listeners: [{name: a, port: 8080, protocol: HTTP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-abc, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.1.1]}]
"""
    )
    found = load(tmp_path)
    assert [(i.line, i.kind, i.name, i.why) for i in found.ignored] == [
        (1, "apps/v1 Deployment", "web", "its API group is not Pointsman's"),
        (5, "v1 Service", "web", "its API group is not Pointsman's"),
        (9, "networking.istio.io/v1 Gateway", "mesh", "its API group is not Pointsman's"),
        (18, "gateway.networking.k8s.io/v1 Gateway", "foreign", "class envoy belongs to another controller"),
        (23, "discovery.k8s.io/v1 EndpointSlice", "web-abc", "endpoints of a Service"),
    ]
    assert [gateway.name for gateway in found.gateways] == ["main"]
    assert [s.name for s in found.endpoint_slices] == ["stable-east"]


def test_what_the_api_server_adds_is_accepted(tmp_path: Path) -> None:
    site = """\
apiVersion: pointsman.dev/v1alpha1
kind: Site
metadata:
  name: west
  uid: 5a1f
  generation: 3
  resourceVersion: "77"
  creationTimestamp: "2026-05-01T12:00:00Z"
  managedFields: [{manager: kubectl}]
  finalizers: [a/b]
  ownerReferences: []
  annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
spec: {}
status: {conditions: [{type: Ready}]}
"""
    (tmp_path / "a.yaml").write_text(
        FLEET + "---\n" + site + "---\n" + site.replace("west", "north").replace('"2026-05-01T12:00:00Z"', "null")
    )
    assert [s.name for s in load(tmp_path).sites] == ["east", "north", "west"]
