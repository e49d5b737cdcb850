"""The operator's commands against a running fleet: what they print, and what the shell learns."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import struct
import termios
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pointsman.app.cli import main
from pointsman.core.buckets import bucket
from support.fast import ask_all, serve_names, users
from support.fleet import MODEL, POINTSMAN, Fleet, Layout, running_fleet
from support.load import chat_body
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def pointsman(fleet: Fleet, *words: str, code: int = 0, stdin: str = "") -> str:
    """What a command prints, on standard error, too."""
    words = (*words, "--admin", fleet.admin)
    result = await asyncio.to_thread(CliRunner().invoke, main, words, stdin)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.output


async def as_json(fleet: Fleet, *words: str, code: int = 0, stdin: str = "") -> Any:
    return json.loads(await pointsman(fleet, *words, "-o", "json", code=code, stdin=stdin))


async def test_status_explain_and_xds(tmp_path: Path) -> None:
    sticky = {"pointsman.dev/sticky-header": "x-user-id", "pointsman.dev/sticky-salt": "s1"}
    layout = Layout(stable={"us-east": 2, "eu-west": 1}, canary_weight=20, stable_weight=80, annotations=sticky)
    async with running_fleet(tmp_path, layout) as fleet:
        await pointsman(fleet, "status", "--wait", "--timeout", "30", "--every", "0.2")
        body = chat_body("What is a pointsman?")
        user = {"x-user-id": "alice"}
        async with fleet.session.post(f"{fleet.url}/v1/chat/completions", json=body, headers=user) as response:
            assert response.status == 200
            request_id = response.headers["x-request-id"]

        async def counted() -> bool:
            return bool((await as_json(fleet, "status"))["requests"])

        await eventually(counted, what="the access log told of the request")
        shown = await pointsman(fleet, "status")
        assert "Fleet healthy  4 of 4 endpoints ready" in shown
        assert "Gateway default/main at us-east: 1 connected" in shown
        for name in ("Site us-east", "├─ default/canary", "└─ stable-eu-west-0", "20 % of default/chat/1"):
            assert name in shown, shown
        assert "\x1b[" not in shown, "no colours in a pipe"
        assert yaml.safe_load(await pointsman(fleet, "status", "-o", "yaml"))["health"] == "healthy"

        found = await as_json(fleet, "explain", request_id)
        assert found["route"].startswith("HTTPRoute/default/chat/1")
        assert found["endpoints"][0] == found["candidates"][0]["endpoint"]
        place = bucket("alice", "s1")
        assert found["arm"]["bucket"] == place
        assert found["arm"]["pool"] == found["pool"] == f"default/{'canary' if place < 2_000 else 'stable'}"
        assert "alice" not in json.dumps(found), "who it was is not told"
        told = await pointsman(fleet, "explain", request_id)
        assert f"bucket  {place} of 10000, by header x-user-id" in told
        assert f"request {request_id}: {found['pool']}, policy joint" in told
        assert "network" in told
        assert "not remembered" in await pointsman(fleet, "explain", "no-such-request", code=1)
        assert "say a request id" in await pointsman(fleet, "explain", code=2)

        picks = (await fleet.get(f"{fleet.admin}/api/v1/picks"))["picks"]
        asked = ("explain", "--host", "x", "-H", "x-model-variant: canary", "--body", "-")
        answer = await as_json(fleet, *asked, stdin=json.dumps(body))
        assert answer["rule"] == "HTTPRoute/default/chat/0/0"
        assert answer["arm"]["pool"] == "default/canary"
        assert [pick["pool"] for pick in answer["picks"]] == ["default/canary"]
        assert answer["picks"][0]["model"] == MODEL
        text = await pointsman(fleet, *asked, stdin=json.dumps(body))
        assert "rule    HTTPRoute/default/chat/0/0" in text and "pick now" in text
        text = await pointsman(
            fleet, "explain", "--path", "/v1/chat/completions", "--body", "-", stdin=json.dumps(body)
        )
        assert "passed  HTTPRoute/default/chat/0/0: the header x-model-variant is absent" in text
        assert "chance decides, header x-user-id is absent: default/canary 20 %, default/stable 80 %" in text
        assert "stable-us-east-0 (127." in text, "endpoints have names"
        assert (await fleet.get(f"{fleet.admin}/api/v1/picks"))["picks"][0]["pick"] == picks[0]["pick"], (
            "nothing counted"
        )
        assert "has no listener 'nope'" in await pointsman(fleet, "explain", "--listener", "nope", code=1)

        assert "has everything" in await pointsman(fleet, "xds", "acks")
        assert "no difference: 1 gateway has what it is to have" in await pointsman(fleet, "xds", "diff")
        dumped = await as_json(fleet, "xds", "dump", "main", "--type", "RDS")
        assert dumped["resources"]["RDS"][0]["resource"]["name"].startswith("default/main/")
        assert "default/stable" in await pointsman(fleet, "xds", "dump")
        assert "there is no gateway default/other" in await pointsman(fleet, "xds", "dump", "other", code=1)

        shown = await on_a_terminal(fleet, ["status", "--watch"])
        assert "Fleet" in shown and "\x1b[32mhealthy" in shown, shown
        assert "\x1b[3" not in await on_a_terminal(fleet, ["status", "--watch"], NO_COLOR="1")

        await fleet.set_faults("stable-eu-west-0", {"refuse": True})

        async def noticed() -> bool:
            tree = await fleet.get(f"{fleet.admin}/api/v1/tree")
            return (tree["health"], tree["ready"]) == ("degraded", 3)

        await eventually(noticed, what="the dead endpoint is noticed")
        shown = await pointsman(fleet, "status", code=3)
        assert "Fleet degraded  3 of 4 endpoints ready" in shown
        assert "stable-eu-west-0 (" in shown


async def on_a_terminal(fleet: Fleet, words: list[str], **environment: str) -> str:
    """What a command writes to a terminal until it shows the last endpoint; Ctrl-C then ends it with 0."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    process = await asyncio.create_subprocess_exec(
        str(POINTSMAN), *words, "--admin", fleet.admin,
        stdin=its, stdout=its, stderr=its, env={**kept, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(its)
    os.set_blocking(ours, False)
    seen = b""

    def shown() -> bool:
        nonlocal seen
        with contextlib.suppress(OSError):  # nothing to read, or nobody writes any more
            seen += os.read(ours, 1 << 16)
        return b"stable-us-east-1" in seen

    try:
        await eventually(shown, timeout_s=40, what="the terminal shows the fleet")
        process.send_signal(signal.SIGINT)

        def ended() -> bool:
            shown()  # a terminal that nobody reads stops who writes to it
            return process.returncode is not None

        await eventually(ended, timeout_s=30, what="the command ends")
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
    return seen.decode()


async def arms(fleet: Fleet, headers: list[str]) -> list[str]:
    """Who answers requests with these header lines."""
    return await ask_all(fleet.manifests.gateway_address, fleet.manifests.http_port, headers)


async def foretold(fleet: Fleet, headers: list[str]) -> list[str]:
    """Who would."""
    found = []
    for line in headers:
        name, _, value = line.partition(": ")
        asked = {"host": "x", "path": "/v1/models", "headers": [[name, value]] if name else []}
        async with fleet.session.post(f"{fleet.admin}/api/v1/explain", json=asked) as response:
            found.append((await response.json())["arm"]["pool"].rpartition("/")[2])
    return found


async def test_apply_and_the_arms_of_users(tmp_path: Path) -> None:
    """Sticky splits by header, cookie, salted and not, each brought in by `apply`: every user's arm is foretold."""
    layout = Layout(canary_weight=40, stable_weight=60, annotations={"pointsman.dev/sticky-header": "x-user-id"})
    async with running_fleet(tmp_path, layout, serve=serve_names) as fleet:
        folder = fleet.manifests.folder
        asked = users(40)
        assert await arms(fleet, asked) == await foretold(fleet, asked)
        assert await foretold(fleet, [""]) == [""], "without the header chance decides"

        cookies = [f"cookie: a=1; user=u{number}; b=2" for number in range(40)]
        cookies += [f'cookie: user="q{number}"' for number in range(5)]
        for salt in ("", "chat-7"):
            annotations = {"pointsman.dev/sticky-cookie": "user"} | (
                {"pointsman.dev/sticky-salt": salt} if salt else {}
            )
            following = next_folder(folder, tmp_path / f"next{salt}", annotations)
            dry = await pointsman(fleet, "apply", "-f", str(following), "--dry-run")
            assert f"would be copied to {folder}" in dry and "of the users move" in dry
            assert (folder / "more.yaml").exists() is bool(salt), "nothing is copied"
            done = await as_json(fleet, "apply", "-f", str(following), "--prune", "--wait", "--timeout", "60")
            assert done["done"] is True
            assert done["acks"] == [{"gateway": "default/main", "have": 1, "pending": []}]
            assert await arms(fleet, cookies) == await foretold(fleet, cookies)
        assert len(set(await foretold(fleet, cookies))) == 2
        others = [f"cookie: other={number}" for number in range(20)]
        assert await arms(fleet, others) == await foretold(fleet, others), "with a salt the whole header is hashed"

        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        less = tmp_path / "less"
        less.mkdir()
        (less / "one.yaml").write_text((folder / "fleet.yaml").read_text())
        assert "has files that" in await pointsman(fleet, "apply", "-f", str(less), code=1)
        (less / "one.yaml").write_text("kind: Gatewey\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {name: x}\n")
        assert "one.yaml:1" in await pointsman(fleet, "apply", "-f", str(less), "--prune", code=1)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "nothing was changed"


def next_folder(old: Path, new: Path, annotations: dict[str, str]) -> Path:
    """A copy of the manifests with other annotations of the route, and one more file without meaning."""
    shutil.copytree(old, new)
    documents = list(yaml.safe_load_all((old / "fleet.yaml").read_text()))
    for document in documents:
        if document["kind"] == "HTTPRoute":
            document["metadata"]["annotations"] = annotations
    (new / "fleet.yaml").write_text(yaml.safe_dump_all(documents))
    (new / "more.yaml").write_text("# nothing yet\n")
    return new


async def test_a_remote_control_plane_with_a_token(tmp_path: Path) -> None:
    """The same words with --token-file; without it the refusal says what is missing."""
    token = tmp_path / "token"
    token.write_text("a-token-made-by-the-test-0123456789")
    extra = ["--admin-token-file", str(token)]
    async with running_fleet(tmp_path, Layout(stable={"us-east": 1}), extra=extra, serve=serve_names) as fleet:
        assert "authorization" in await pointsman(fleet, "xds", "acks", code=1)
        assert "has everything" in await pointsman(fleet, "xds", "acks", "--token-file", str(token))
        assert "nobody" not in await pointsman(fleet, "audit", "log", "--token-file", str(token))
