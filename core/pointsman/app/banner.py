"""What `pointsman up` prints once everything is ready."""

from __future__ import annotations

import json

from pointsman.app.up import Running


def banner(running: Running, *, envoys: bool = True, tls: bool = False, proof: str = "") -> str:
    """Addresses, and commands that can be pasted: a streamed answer, the status, and how to break a replica.

    Without `envoys` of ours it says how to start one; with `tls` that needs the names of files, which only the reader
    knows. `proof`: the options by which the admin API lets commands in.
    """
    lines = ["", "Pointsman is ready."]
    lines += [f"  gateway     {url}   ({name})" for name, urls in running.gateways.items() for url in urls]
    lines += [f"  admin       {running.admin}", f"  xDS, picker {running.grpc}"]
    if running.simulator:
        lines += [f"  simulator   {running.simulator}"]
    if not envoys:
        files = " --tls-cert FILE --tls-key FILE --tls-ca FILE" if tls else ""
        lines += ["", "No Envoy is started here. For each gateway, where it is to run:"]
        lines += [
            f"  pointsman bootstrap --gateway {name} --xds {running.grpc}{files} --out envoy"
            " && envoy -c envoy/bootstrap.json"
            for name in running.gateways
        ]
    chat_url = next((urls[0] for urls in running.gateways.values() if urls), "")
    if chat_url and running.model:
        body = {
            "model": running.model,
            "stream": True,
            "max_tokens": 32,
            "messages": [{"role": "user", "content": "Where does this train go?"}],
        }
        lines += [
            "",
            "Ask it something:",
            f"  curl -N {chat_url}/v1/chat/completions -H 'content-type: application/json' \\",
            f"    -d '{json.dumps(body)}'",
        ]
    lines += ["", "See the fleet, in a browser or here:", f"  {running.admin}/"]
    lines += [f"  pointsman status --admin {running.admin}{proof}"]
    if running.simulator and running.replicas:
        name = running.replicas[0]
        lines += [
            "",
            f"Crash {name}, then bring it back:",
            f"  curl -X PUT {running.simulator}/replicas/{name}/faults -d '{{\"exit\": true}}'",
            f"  curl -X DELETE {running.simulator}/replicas/{name}/faults",
        ]
    return "\n".join([*lines, "", "Ctrl-C stops everything.", ""])
