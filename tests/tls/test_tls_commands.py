"""What the commands refuse, what they write, and who reads the admin API from elsewhere."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner, Result

from pointsman.app.cli import main
from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.envoy import EnvoyError, validate_bootstrap
from pointsman.app.tls import TlsFiles
from pointsman.app.trial_certificates import SERVER_NAME, TrialCa
from support.fleet import Layout, Loopback, Manifests
from support.waiting import eventually

TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    manifests = Manifests(tmp_path / "config", Loopback())
    manifests.write(Layout())
    return manifests.folder


@pytest.fixture
def ca(tmp_path: Path) -> TrialCa:
    made = TrialCa(tmp_path / "certs")
    made.server()
    made.gateway(["default/main"], trust_domain="test")
    (made.folder / "token").write_text(TOKEN + "\n")
    (made.folder / "short").write_text("hunter2")
    return made


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


TLS = "--tls-cert server.pem --tls-key server.key --tls-client-ca ca.pem"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--grpc-address 0.0.0.0", "--allow-plaintext"),
        ("--grpc-address 0.0.0.0 --picker 10.0.0.5:18000", "--tls-cert"),
        ("--grpc-address 0.0.0.0 --allow-plaintext", "say --picker HOST:PORT"),
        ("--grpc-address :: " + TLS, "say --picker HOST:PORT"),
        ("--admin-address 0.0.0.0 --allow-plaintext", "needs --admin-token-file"),
        ("--admin-address 0.0.0.0 " + TLS, "needs --admin-token-file"),
        ("--admin-address 0.0.0.0 --admin-token-file token", "--tls-cert"),
        ("--admin-address 0.0.0.0 --admin-token-file short " + TLS, "at least 16 characters"),
        ("--admin-token-file missing", "missing"),
        ("--tls-cert server.pem", "belong together"),
        (TLS.replace("server.key", "missing"), "missing: No such file"),
        (TLS.replace("server.key", "default.main.key"), "the key belongs to another certificate"),
        ("--picker nowhere", "is not HOST:PORT"),
    ],
)
def test_up_refuses(words: str, said: str, ca: TrialCa, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ca.folder)
    found = run("up", "--config", str(config), "--no-envoy", "--grpc-port", "0", "--admin-port", "0", *words.split())
    assert found.exit_code in {1, 2}
    assert said in " ".join(found.output.split())


def test_tls_is_for_gateways_elsewhere(ca: TrialCa, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ca.folder)
    assert "say --no-envoy" in run("up", "--config", str(config), *TLS.split()).output


GATEWAY_TLS = "--tls-cert default.main.pem --tls-key default.main.key --tls-ca ca.pem"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tls-cert default.main.pem --out envoy", "TLS needs --tls-key and --tls-ca"),
        (GATEWAY_TLS, "say --out FOLDER"),
        (GATEWAY_TLS.replace("main.key", "other.key") + " --out envoy", "no such file; for another machine"),
        (GATEWAY_TLS + " --out envoy --mounted-at /etc/envoy", "is not an absolute path on the gateway"),
        (
            GATEWAY_TLS.replace(" d", " /d").replace(" c", " /c") + " --out e --mounted-at etc",
            "'etc' is not an absolute",
        ),
    ],
)
def test_bootstrap_refuses(words: str, said: str, ca: TrialCa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ca.folder)
    found = run("bootstrap", "--gateway", "default/main", *words.split())
    assert found.exit_code == 2
    assert said in " ".join(found.output.replace("│", " ").split())
    assert not (ca.folder / "envoy").exists()


@pytest.mark.parametrize("server_name", ["pointsman", "spiffe://test/ns/ops/sa/control-plane"])
@pytest.mark.e2e
async def test_envoy_accepts_what_bootstrap_writes(
    ca: TrialCa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_name: str
) -> None:
    monkeypatch.chdir(ca.folder)
    words = [*GATEWAY_TLS.split(), "--out", "envoy", "--server-name", server_name]
    found = run("bootstrap", "--gateway", "default/main", "--xds", "10.0.0.5:18000", "--xds", "b.example:18000", *words)
    assert (found.exit_code, found.output) == (0, "")
    folder = ca.folder / "envoy"
    assert {path.name for path in folder.iterdir()} == {"bootstrap.json", "pointsman-ca.json", "pointsman-client.json"}
    bootstrap = json.loads((folder / "bootstrap.json").read_text())
    assert bootstrap["node"]["metadata"]["pointsman.tls"] == str(folder)
    assert ("sni" in json.dumps(bootstrap)) == ("://" not in server_name)
    await validate_bootstrap(bootstrap, tmp_path / "good")
    (folder / "pointsman-client.json").unlink()
    with pytest.raises(EnvoyError, match=r"pointsman-client\.json"):
        await validate_bootstrap(bootstrap, tmp_path / "bad")


def test_files_for_another_machine_name_its_paths(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(
        "bootstrap", "--gateway", "default/main", "--out", str(out), "--mounted-at", "/etc/envoy",
        "--tls-cert", "/certs/tls.crt", "--tls-key", "/certs/tls.key", "--tls-ca", "/trust/ca.crt",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert '"path": "/etc/envoy/pointsman-client.json"' in (out / "bootstrap.json").read_text()
    (secret,) = json.loads((out / "pointsman-ca.json").read_text())["resources"]
    assert secret["validation_context"]["trusted_ca"] == {"filename": "/trust/ca.crt"}
    assert secret["validation_context"]["watched_directory"] == {"path": "/trust"}


def test_certs_make_tells_what_it_made(tmp_path: Path) -> None:
    found = run("certs", "make", "--out", str(tmp_path), "--gateway", "default/main", "--operator", "anna")
    assert found.exit_code == 0, found.output
    made = [Path(line).name for line in found.output.splitlines()]
    pairs = [f"{name}.{kind}" for name in ("server", "default.main", "anna") for kind in ("pem", "key")]
    assert made == ["ca.pem", *pairs]
    assert all((tmp_path / name).stat().st_mode & 0o077 == 0 for name in made if name.endswith(".key"))
    assert "is not namespace/name" in run("certs", "make", "--out", str(tmp_path), "--gateway", "main").output


def test_certs_make_without_openssl_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = run("certs", "make", "--out", str(tmp_path / "certs"))
    assert found.exit_code == 1
    assert "install OpenSSL" in found.output


def trusting(ca: TrialCa) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca.certificate))


async def test_the_admin_api_elsewhere_is_encrypted_and_wants_the_token(ca: TrialCa, config: Path) -> None:
    certificate, key, token = ca.folder / "server.pem", ca.folder / "server.key", ca.folder / "token"
    options = ControlPlaneOptions(
        config=config,
        grpc_port=0,
        admin_address="0.0.0.0",
        admin_port=0,
        admin_token_file=token,
        tls=TlsFiles(certificate=certificate, key=key, client_ca=ca.certificate),
    )
    async with ControlPlane(options) as plane:
        assert plane.admin_url.startswith("https://")
        url = plane.admin_url.replace("0.0.0.0", "127.0.0.1")

        async def status(path: str, authorization: str = "") -> int:
            """Over a connection of its own, so that it shows the certificate of the moment."""
            headers = {"authorization": authorization} if authorization else {}
            connector = aiohttp.TCPConnector(ssl=trusting(ca), force_close=True)
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get(url + path, headers=headers, server_hostname=SERVER_NAME) as response,
            ):
                return response.status

        good = f"Bearer {TOKEN}"
        for path in ("/healthz", "/readyz"):
            assert await status(path) == 200
        for path in ("/metrics", "/api/v1/status", "/api/v1/picks/x", "/no/such/path", "//healthz"):
            assert await status(path) == 401
            for wrong in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer ü"):
                assert await status(path, wrong) == 401
        assert await status("/metrics", good) == 200
        assert await status("/no/such/path", good) == 404

        token.write_text("another-token-that-is-long-enough")
        assert await status("/metrics", good) == 401
        assert await status("/metrics", "Bearer another-token-that-is-long-enough") == 200
        token.write_text("")
        assert await status("/metrics", "Bearer another-token-that-is-long-enough") == 200, "the last good one counts"
        assert await status("/metrics", "Bearer ") == 401

        before = await shown(url)
        ca.server()
        await eventually(lambda: differs(url, before), what="new connections get the new certificate")


async def shown(url: str) -> str:
    """The certificate that a new connection is shown."""

    host, port = url.removeprefix("https://").split(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))


async def differs(url: str, before: str) -> bool:
    return await shown(url) != before


@pytest.mark.parametrize("token", [True, False])
async def test_on_loopback_the_admin_api_is_as_it_was(ca: TrialCa, config: Path, token: bool) -> None:
    options = ControlPlaneOptions(
        config=config,
        grpc_port=0,
        admin_port=0,
        admin_token_file=ca.folder / "token" if token else None,
        tls=TlsFiles(certificate=ca.folder / "server.pem", key=ca.folder / "server.key", client_ca=ca.certificate),
    )
    async with (
        ControlPlane(options) as plane,
        aiohttp.ClientSession() as session,
        session.get(f"{plane.admin_url}/api/v1/status") as response,
    ):
        assert response.status == (401 if token else 200)
