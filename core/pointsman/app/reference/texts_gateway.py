"""What the fields of Gateway API's kinds mean to Pointsman."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TEXTS: Final[Mapping[str, Mapping[str, str]]] = {
    "gateway_kinds.GatewayClass": {"spec": "What the class is."},
    "gateway_kinds.GatewayClassSpec": {
        "controllerName": "`pointsman.dev/gateway-controller` makes the Gateways of the class ours.",
        "description": "For people; not read.",
    },
    "gateway_kinds.Gateway": {"spec": "What the proxies of this Gateway serve."},
    "gateway_kinds.GatewaySpec": {
        "gatewayClassName": "`pointsman`, which needs no manifest, or a GatewayClass that is ours.",
        "listeners": "Ports; at most 64. Two listeners of one port differ in their host names.",
        "addresses": "What the listeners bind. Loopback where none is written and the annotation says nothing else.",
    },
    "gateway_kinds.GatewayListener": {
        "name": "Its name in `sectionName` of routes.",
        "port": "TCP port.",
        "protocol": "Plain HTTP, both HTTP/1.1 and HTTP/2. TLS is ended in front of the gateway.",
        "hostname": "Only these hosts; all where it is left out.",
        "allowedRoutes": "Which routes may attach.",
    },
    "gateway_kinds.AllowedRoutes": {
        "namespaces": "Where they may come from.",
        "kinds": "Kinds that may attach; HTTPRoute and GRPCRoute where it is left out.",
    },
    "gateway_kinds.RouteNamespaces": {"from": "`Same`: only routes of the Gateway's namespace."},
    "gateway_kinds.RouteGroupKind": {"group": "API group of the kind.", "kind": "Kind of route."},
    "gateway_kinds.GatewayAddress": {"type": "What `value` is.", "value": "The address to bind."},
    "gateway_kinds.ReferenceGrant": {"spec": "Who may refer to what in this namespace."},
    "gateway_kinds.ReferenceGrantSpec": {"from": "Who refers.", "to": "What they may refer to."},
    "gateway_kinds.GrantFrom": {
        "group": "API group of who refers.",
        "kind": "Its kind, such as HTTPRoute.",
        "namespace": "Its namespace.",
    },
    "gateway_kinds.GrantTo": {
        "group": "API group of what is referred to.",
        "kind": "Its kind, such as InferencePool.",
        "name": "Only this object; all of the kind where it is left out.",
    },
    "route_kinds.HTTPRoute": {"spec": "Which requests go where."},
    "route_kinds.GRPCRoute": {"spec": "Which calls go where."},
    "route_kinds.HTTPRouteSpec": {
        "parentRefs": "Gateways that it is attached to.",
        "hostnames": "Only requests to these hosts; all of the listener's where it is left out.",
        "rules": "Rules; the most specific match wins, by Gateway API's order of precedence.",
    },
    "route_kinds.GRPCRouteSpec": {
        "parentRefs": "Gateways that it is attached to.",
        "hostnames": "Only calls to these hosts; all of the listener's where it is left out.",
        "rules": "Rules; the most specific match wins, by Gateway API's order of precedence.",
    },
    "route_kinds.ParentReference": {
        "group": "API group of the parent.",
        "kind": "Kind of the parent.",
        "namespace": "Its namespace; the route's where it is left out.",
        "name": "Name of the Gateway.",
        "sectionName": "Only this listener; all that allow it where it is left out.",
        "port": "Only listeners of this port.",
    },
    "route_kinds.HTTPRule": {
        "name": "Its name in policies, commands and metrics; its number where it is left out.",
        "filters": "Edits of headers for all requests of the rule.",
        "backendRefs": "The arms of the split. Without any the answer is 500, `no-backend`.",
        "matches": "Requests that it takes: one of them must fit. All requests where it is left out.",
        "timeouts": "How long a request may take.",
    },
    "route_kinds.GRPCRule": {
        "name": "Its name in policies, commands and metrics; its number where it is left out.",
        "filters": "Edits of headers for all calls of the rule.",
        "backendRefs": "The arms of the split. Without any the call fails, `no-backend`.",
        "matches": "Calls that it takes: one of them must fit. All calls where it is left out.",
    },
    "route_kinds.Filter": {
        "type": "What it edits.",
        "requestHeaderModifier": "Edits of the request's headers.",
        "responseHeaderModifier": "Edits of the answer's headers.",
    },
    "route_kinds.HeaderModifier": {
        "set": "Headers that get this value, whatever they had.",
        "add": "Values that are added.",
        "remove": "Headers that are taken away.",
    },
    "route_kinds.HTTPHeader": {"name": "Name of the header.", "value": "Its value."},
    "route_kinds.BackendRef": {
        "group": "`inference.networking.k8s.io` for an InferencePool, `pointsman.dev` for an InferenceFleet, "
        "`inference.networking.x-k8s.io` for an InferencePoolImport.",
        "kind": "`InferencePool`, `InferenceFleet`, `InferencePoolImport`. A Service is refused: single endpoints must "
        "be known.",
        "namespace": "Its namespace; another one than the route's needs a ReferenceGrant.",
        "name": "Name of the pool.",
        "port": "Not needed: the pool's `targetPorts` hold.",
        "weight": "Part of the rule's requests, in relation to the other arms. 0, or at least 0.01 % of the sum.",
        "filters": "Edits of headers for this arm only.",
    },
    "route_kinds.Timeouts": {
        "request": "From the request's end to the answer's end; no limit where it is left out. `0s`: none of silence, "
        "too.",
    },
    "route_kinds.HTTPMatch": {
        "path": "The path.",
        "headers": "Headers, all of which must fit.",
        "queryParams": "Query parameters, all of which must fit.",
        "method": "The method; any where it is left out.",
    },
    "route_kinds.PathMatch": {
        "type": "How `value` is read. Regular expressions are RE2 and must fit the whole path.",
        "value": "The path, its beginning, or the expression.",
    },
    "route_kinds.HeaderMatch": {
        "type": "How `value` is read. Regular expressions are RE2 and must fit the whole value.",
        "name": "Name of the header; upper and lower case are the same.",
        "value": "The value, or the expression.",
    },
    "route_kinds.QueryParamMatch": {
        "type": "How `value` is read.",
        "name": "Name of the parameter.",
        "value": "The value, or the expression.",
    },
    "route_kinds.GRPCMatch": {
        "method": "Service and method; any where it is left out.",
        "headers": "Metadata, all of which must fit.",
    },
    "route_kinds.GRPCMethodMatch": {
        "type": "How the names are read.",
        "service": "Full name of the service, such as `inference.GRPCInferenceService`.",
        "method": "Name of the method.",
    },
}
"""Struct → field → meaning."""
