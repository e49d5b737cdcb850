"""Certificates for trying TLS out, made by the `openssl` command: a CA, a control plane's, and those of gateways.

Not for production: the CA's key lies beside them, and nobody renews anything. What has `cert-manager`, SPIRE or a
company's own CA needs none of this, only the names (see `pointsman.app.identity`).
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pointsman.app.identity import CONTROL_PLANE
from pointsman.core.errors import PointsmanError

SERVER_NAME: Final = CONTROL_PLANE

_CONFIG: Final = "[req]\ndistinguished_name = subject\n[subject]\n"
_LEAF: Final = ("basicConstraints = critical, CA:FALSE", "keyUsage = critical, digitalSignature")
_CA: Final = (
    "basicConstraints = critical, CA:TRUE",
    "keyUsage = critical, keyCertSign, cRLSign",
    "subjectKeyIdentifier = hash",
)


_ODD: Final = re.compile(r"[^\w.:/ ,=-]")
"""Characters that would mean something else to `openssl`."""


class CertificateError(PointsmanError):
    """`openssl` is missing or failed."""


class TrialCa:
    """A CA in a folder: the files `ca.pem` and `ca.key`, made when they are not there.

    Every file is moved into its place when it is complete, key first, so that whoever follows them may do so.
    """

    def __init__(self, folder: Path, *, days: int = 30) -> None:
        self._openssl = shutil.which("openssl") or ""
        if not self._openssl:
            raise CertificateError(
                "the command openssl was not found: install OpenSSL, or bring certificates of your own"
            )
        self.folder = folder
        self._days = days
        folder.mkdir(parents=True, exist_ok=True)
        if not (self.certificate.exists() and self._key.exists()):
            self._issue("ca", _CA, signed_by_ca=False)

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def _key(self) -> Path:
        return self.folder / "ca.key"

    def server(self, hosts: Sequence[str] = (), *, name: str = "server") -> tuple[Path, Path]:
        """Certificate and key of a control plane that is called `SERVER_NAME` and `hosts` (names or addresses).

        It is a client, too: of the pickers of other control planes.
        """
        names = [f"DNS:{SERVER_NAME}", *(f"IP:{host}" if _is_ip(host) else f"DNS:{host}" for host in hosts)]
        return self._issue(
            name, (*_LEAF, "extendedKeyUsage = serverAuth, clientAuth", f"subjectAltName = {', '.join(names)}")
        )

    def gateway(self, gateways: Sequence[str], *, trust_domain: str, name: str = "") -> tuple[Path, Path]:
        """Certificate and key of a proxy for `gateways` ("namespace/name"); files are called after the first."""
        uris = []
        for gateway in gateways:
            namespace, _, short = gateway.partition("/")
            uris.append(f"URI:spiffe://{trust_domain}/ns/{namespace}/gateway/{short}")
        return self._client(name or gateways[0].replace("/", "."), uris)

    def operator(self, operator: str, *, trust_domain: str) -> tuple[Path, Path]:
        """Certificate and key of a person or a tool that reads the state of all gateways."""
        return self._client(operator, [f"URI:spiffe://{trust_domain}/operator/{operator}"])

    def client(self, name: str, dns: str) -> tuple[Path, Path]:
        """Certificate and key of a client with a DNS name."""
        return self._client(name, [f"DNS:{dns}"])

    def _client(self, name: str, names: Sequence[str]) -> tuple[Path, Path]:
        return self._issue(name, (*_LEAF, "extendedKeyUsage = clientAuth", f"subjectAltName = {', '.join(names)}"))

    def _issue(self, name: str, extensions: Sequence[str], *, signed_by_ca: bool = True) -> tuple[Path, Path]:
        if odd := next((line for line in (name, *extensions) if _ODD.search(line)), ""):
            raise CertificateError(f"{odd!r} holds what no name in a certificate may")
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=self.folder) as folder:
            draft = Path(folder)
            (draft / "config").write_text(_CONFIG, encoding="utf-8")
            (draft / "extensions").write_text("\n".join(extensions), encoding="utf-8")
            self._run(draft, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key")
            self._run(draft, "req", "-new", "-config", "config", "-subj", f"/O=pointsman trial/CN={name}"[:64],
                      "-key", "key", "-out", "request")  # fmt: skip
            signer = ["-CA", str(self.certificate.absolute()), "-CAkey", str(self._key.absolute())]
            self._run(draft, "x509", "-req", "-in", "request", *(signer if signed_by_ca else ["-signkey", "key"]),
                      "-set_serial", f"0x{secrets.token_hex(16)}", "-days", str(self._days), "-sha256",
                      "-extfile", "extensions", "-out", "certificate")  # fmt: skip
            key, certificate = self.folder / f"{name}.key", self.folder / f"{name}.pem"
            (draft / "key").chmod(0o600)
            (draft / "key").replace(key)
            (draft / "certificate").replace(certificate)
        return certificate, key

    def _run(self, folder: Path, *words: str) -> None:
        done = subprocess.run([self._openssl, *words], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CertificateError(f"openssl {words[0]}: {done.stderr.strip()}")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
