"""A small valid fleet as text, and ways to load and spoil it."""

from __future__ import annotations

from pathlib import Path

from pointsman.core.config import Manifests
from pointsman.core.config.load import validate
from pointsman.core.config.source import read_text
from pointsman.core.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-sites"

FLEET = """\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: main
  annotations: {pointsman.dev/site: east}
spec:
  gatewayClassName: pointsman
  listeners:
  - name: http
    port: 8080
    protocol: HTTP
  - name: grpc
    port: 8081
    protocol: HTTP
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: chat
spec:
  parentRefs:
  - name: main
    sectionName: http
  rules:
  - name: split
    matches:
    - path: {type: PathPrefix, value: /v1}
      headers:
      - {name: x-variant, value: a}
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-a, value: b}]}
    timeouts: {request: 30s}
    backendRefs:
    - group: inference.networking.k8s.io
      kind: InferencePool
      name: canary
      weight: 5
    - group: inference.networking.k8s.io
      kind: InferencePool
      name: stable
      weight: 95
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata:
  name: generate
spec:
  parentRefs:
  - name: main
    sectionName: grpc
  rules:
  - matches:
    - method: {service: sim.v1.Generate}
    backendRefs:
    - group: inference.networking.k8s.io
      kind: InferencePool
      name: stream
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: stable
spec:
  selector: {matchLabels: {app: stable}}
  targetPorts: [{number: 8000}]
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: canary
spec:
  selector: {matchLabels: {app: canary}}
  targetPorts: [{number: 8000}]
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: stream
spec:
  selector: {matchLabels: {app: stream}}
  targetPorts: [{number: 9000}]
  appProtocol: kubernetes.io/h2c
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: stable-east
  labels:
    pointsman.dev/pool: stable
    pointsman.dev/site: east
addressType: IPv4
ports: [{port: 8000}]
endpoints:
- addresses: [10.0.0.1]
- addresses: [10.0.0.2]
---
apiVersion: pointsman.dev/v1alpha1
kind: Site
metadata:
  name: east
spec:
  state: Active
"""


def manifests(text: str) -> Manifests:
    """The objects of a text that stands for the file `fleet.yaml`."""
    return validate(read_text("fleet.yaml", text))


def spoiled(*edits: tuple[str, str]) -> str:
    """The fleet with pieces replaced; each piece occurs in it, and its first occurrence is meant."""
    text = FLEET
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def problems(text: str) -> list[str]:
    """What is wrong with a text, as an operator sees it."""
    try:
        manifests(text)
    except ConfigError as error:
        return str(error).split("\n")
    return []
