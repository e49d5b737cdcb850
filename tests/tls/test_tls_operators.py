"""Operators with certificates: they need no token, the audit log knows them by name, and others do not get in."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from pointsman.app.cli import main
from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.tls import TlsFiles
from pointsman.app.trial_certificates import TrialCa
from support.fleet import Layout, Loopback, Manifests
from support.waiting import eventually

TOKEN = "correct-horse-battery-staple"


class Folder:
    """Certificates: of two CAs, one of which is believed, and manifests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ours = TrialCa(path / "ours")
        self.ours.server(["127.0.0.1"])
        self.ours.operator("anna", trust_domain="ours.example")
        self.ours.operator("bert", trust_domain="theirs.example")
        self.ours.gateway(["default/main"], trust_domain="ours.example")
        self.theirs = TrialCa(path / "theirs")
        self.theirs.operator("eve", trust_domain="ours.example")
        self.admin_ca = path / "admin-ca.pem"
        self.admin_ca.write_bytes(self.ours.certificate.read_bytes())
        manifests = Manifests(path / "config", Loopback())
        manifests.write(Layout(stable={"us-east": 1}, canary={"us-east": 1}))

    def options(self, *, token: Path | None = None) -> ControlPlaneOptions:
        server, key = self.ours.folder / "server.pem", self.ours.folder / "server.key"
        return ControlPlaneOptions(
            config=self.path / "config",
            state=self.path / "state",
            grpc_port=0,
            admin_port=0,
            admin_token_file=token,
            trust_domain="ours.example",
            tls=TlsFiles(certificate=server, key=key, client_ca=self.ours.certificate, admin_client_ca=self.admin_ca),
        )

    def context(self, ca: TrialCa | None = None, name: str = "") -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.ours.certificate))
        if ca is not None:
            made.load_cert_chain(ca.folder / f"{name}.pem", ca.folder / f"{name}.key")
        return made

    def words(self, ca: TrialCa, name: str) -> list[str]:
        """The same on a command line."""
        files = ["--client-cert", f"{ca.folder / name}.pem", "--client-key", f"{ca.folder / name}.key"]
        return ["--admin-ca", str(self.ours.certificate), *files]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


async def ask(
    plane: ControlPlane, context: ssl.SSLContext, path: str = "/api/v1/status", **more: Any
) -> tuple[int, Any]:
    """Over a connection of its own."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, force_close=True)) as session,
        session.get(f"{plane.admin_url}{path}", **more) as response,
    ):
        return response.status, (await response.json() if response.content_type == "application/json" else None)


async def pointsman(plane: ControlPlane, *words: str) -> tuple[int, str]:
    """A command, in a thread; its exit code and all it said on one line."""
    found = await asyncio.to_thread(CliRunner().invoke, main, [*words, "--admin", plane.admin_url])
    return found.exit_code, " ".join(found.output.split())


async def test_operators_get_in_and_others_do_not(folder: Folder) -> None:
    async with ControlPlane(folder.options()) as plane:
        assert plane.admin_url.startswith("https://127.0.0.1"), "also on loopback"
        assert await ask(plane, folder.context(), "/healthz") == (200, None)
        status, told = await ask(plane, folder.context())
        assert (status, told["error"]) == (401, "this needs a client certificate that names an operator")
        status, told = await ask(plane, folder.context(folder.ours, "default.main"))
        assert status == 403
        assert "this certificate names no operator" in told["error"]
        assert (await ask(plane, folder.context(folder.ours, "bert")))[0] == 403, "of another trust domain"
        with pytest.raises(aiohttp.ClientError):
            await ask(plane, folder.context(folder.theirs, "eve"))

        # What anna does is hers in the audit log, whatever else is said.
        change = ["weights", "set", "chat/1", "canary=7", "stable=93", "--reason", "a test"]
        code, said = await pointsman(plane, *change, *folder.words(folder.ours, "anna"))
        assert code == 0, said
        records = (await ask(plane, folder.context(folder.ours, "anna"), "/api/v1/audit"))[1]["records"]
        record = next(one for one in records if one["action"] == "weights.set")
        assert (record["actor"], record["via"]) == ("anna", "certificate")

        code, said = await pointsman(plane, "status", "--admin-ca", str(folder.ours.certificate))
        assert code == 1
        assert "pointsman status: this needs a client certificate that names an operator" in said
        code, said = await pointsman(plane, "status", *folder.words(folder.theirs, "eve"))
        assert code == 1
        assert "does it want a --client-cert that its --admin-client-ca has signed?" in said
        code, said = await pointsman(plane, "status")
        assert code == 1
        assert "is not trusted" in said
        assert "say who signed it with --admin-ca" in said


async def test_another_ca_counts_at_once_and_connections_that_the_old_one_let_in_do_not(folder: Folder) -> None:
    async with ControlPlane(folder.options()) as plane:
        kept = aiohttp.TCPConnector(ssl=folder.context(folder.ours, "anna"), limit=1)
        async with aiohttp.ClientSession(connector=kept) as session:

            async def annas() -> int:
                async with session.get(f"{plane.admin_url}/api/v1/status") as response:
                    await response.read()
                    return response.status

            assert await annas() == 200
            draft = folder.path / "draft"
            draft.write_bytes(folder.theirs.certificate.read_bytes())
            draft.replace(folder.admin_ca)

            async def refused() -> bool:
                return await annas() == 401

            await eventually(refused, what="the connection that was there counts no more")
        assert (await ask(plane, folder.context(folder.theirs, "eve")))[0] == 200
        with pytest.raises(aiohttp.ClientError):
            await ask(plane, folder.context(folder.ours, "anna"))
        status = (await ask(plane, folder.context(folder.theirs, "eve")))[1]
        assert "admin_client_ca" in status["configuration"]["tls"]["expires_at_s"]


async def test_a_token_will_do_where_there_is_one(folder: Folder) -> None:
    token = folder.path / "token"
    token.write_text(TOKEN)
    async with ControlPlane(folder.options(token=token)) as plane:
        status, told = await ask(plane, folder.context())
        assert status == 401
        assert told["error"] == (
            "this needs the header authorization: Bearer TOKEN or a client certificate that names an operator"
        )
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert (await ask(plane, folder.context(), headers=headers))[0] == 200
        assert (await ask(plane, folder.context(folder.ours, "default.main"), headers=headers))[0] == 200
        assert (await ask(plane, folder.context(folder.ours, "anna")))[0] == 200


def run(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(main, words)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, " ".join(found.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (lambda f: ["--client-key", f"{f.ours.folder}/anna.key"], "say --client-cert, too"),
        (lambda f: ["--client-cert", f"{f.path}/missing"], "missing: No such file or directory"),
        (
            lambda f: ["--client-cert", f"{f.ours.folder}/anna.pem", "--client-key", f"{f.ours.folder}/bert.key"],
            "the key belongs to another certificate",
        ),
        (lambda f: ["--client-cert", f"{f.ours.folder}/anna.pem"], "no certificate with its key"),
        (lambda f: ["--admin-ca", f"{f.ours.folder}/anna.key"], "no certificate in it"),
        (lambda f: ["--token-file", f"{f.path}/missing"], "--token-file"),
    ],
)
def test_files_that_cannot_be_used_are_named(words: Callable[[Folder], list[str]], said: str, folder: Folder) -> None:
    code, told = run("status", *words(folder))
    assert code == 1
    assert said in told
    assert "--admin-token-file" not in told


def test_up_wants_all_files(folder: Folder) -> None:
    code, told = run("up", "--config", str(folder.path / "config"), "--admin-client-ca", str(folder.admin_ca))
    assert code == 2
    assert "--admin-client-ca needs --tls-cert, --tls-key and --tls-client-ca, too" in told


async def test_what_does_not_answer_is_told_in_one_sentence() -> None:
    """Nobody there, a name that is none, plain text where TLS is asked for, silence, no address at all."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.0 400 what?\r\n\r\n" if secure else b"")
        writer.close()

    secure = False
    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    somebody = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        for url, said in (
            (nobody, f"no control plane listens at {nobody}: start one with `pointsman up`, or say where it is with "),
            ("http://no-such-host.invalid:1", "there is no host of that name"),
            ("nowhere", "is no address: say http://HOST:PORT or https://HOST:PORT"),
            (f"http://{somebody}", "ended the connection without an answer; does it want https://?"),
            (f"https://{somebody}", "does not speak TLS: say http:// in place of https://"),
        ):
            secure = url.startswith("https")
            code, told = await asyncio.to_thread(run, "status", "--admin", url)
            assert (code, said in told) == (1, True), told
            assert "Cannot connect" not in told
