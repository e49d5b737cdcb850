"""What the user of a control plane chose, and what is refused before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointsman.app.admin_token import read_token
from pointsman.app.pick_shell import PickerShell
from pointsman.app.ports import PortError, Wanted, is_loopback, is_wildcard
from pointsman.app.stream_age import STREAM_AGE_S
from pointsman.app.tls import TlsFiles
from pointsman.app.tracing_options import TracingOptions
from pointsman.core import defaults
from pointsman.extproc import PickPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneOptions:
    """What the user chose. Ports of 0 are any free port.

    `state` is the folder for what must survive a restart: weights set at run time, the audit log.
    `tls` demands client certificates on the gRPC port and encrypts the admin API where others reach it, or where
    operators show certificates; with `trust_domain` SPIFFE ids of other domains count for nothing. `pickers` (host,
    port) are what gateways are told, in order of preference; none: our own gRPC address. `stream_age_s`: see
    `stream_age`. `picker_workers`: processes that pick, on a port of their own, served by
    `picker_shell`; 0: this one picks. `picker_peers` are gRPC addresses of other control planes whose pickers share
    their load with ours. `default_pool` is for requests of gateways that do not name one. `tracing`: where spans are
    sent; None: nothing is traced.
    """

    config: Path
    state: Path = Path(".pointsman")
    grpc_address: str = defaults.LOOPBACK
    grpc_port: int = defaults.GRPC_PORT
    admin_address: str = defaults.LOOPBACK
    admin_port: int = defaults.ADMIN_PORT
    allow_plaintext: bool = False
    tls: TlsFiles | None = None
    trust_domain: str = ""
    admin_token_file: Path | None = None
    pickers: tuple[tuple[str, int], ...] = ()
    stream_age_s: float = STREAM_AGE_S
    policy: PickPolicy = PickPolicy.JOINT
    default_pool: str = ""
    picker_workers: int = 0
    picker_shell: PickerShell = PickerShell.NATIVE
    picker_peers: tuple[tuple[str, int], ...] = ()
    tracing: TracingOptions | None = None

    def wanted_ports(self) -> list[Wanted]:
        """The addresses that the control plane itself listens on."""
        return [
            Wanted(
                address=self.grpc_address,
                port=self.grpc_port,
                purpose="the gRPC server (xDS, picker, access logs)",
                setting="--grpc-port",
            ),
            Wanted(
                address=self.admin_address, port=self.admin_port, purpose="the admin server", setting="--admin-port"
            ),
        ]

    def check(self) -> None:
        """Refuse what would let strangers in, or leave gateways without a picker.

        Raises:
            PortError: an address that others reach, without what protects it.
            TokenError: the token file cannot be used.
        """
        for name, address in (("--grpc-address", self.grpc_address), ("--admin-address", self.admin_address)):
            if not is_loopback(address) and self.tls is None and not self.allow_plaintext:
                raise PortError(
                    f"{name} {address} is reachable from other machines, without encryption or identity; "
                    "keep it on 127.0.0.1, or give --tls-cert, --tls-key and --tls-client-ca, "
                    "or say --allow-plaintext if the network is yours alone"
                )
        operators = self.tls is not None and self.tls.admin_client_ca is not None
        if not is_loopback(self.admin_address) and self.admin_token_file is None and not operators:
            raise PortError(
                f"--admin-address {self.admin_address} is reachable from other machines: the admin API needs "
                "--admin-token-file or --admin-client-ca there"
            )
        if self.admin_token_file is not None:
            read_token(self.admin_token_file)
        if is_wildcard(self.grpc_address) and not self.pickers:
            raise PortError(
                f"gateways cannot reach their picker at {self.grpc_address}: say --picker HOST:PORT with an address "
                "of this machine that they can reach"
            )
