"""`pointsman up`."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Any, Final

import click
from prometheus_client import disable_created_metrics

from pointsman.app.banner import banner
from pointsman.app.commands.shared import host_port, refuse
from pointsman.app.commands.tracing import chosen_tracing, tracing_flags
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.app.logs import configure_logs
from pointsman.app.pick_shell import PickerShell
from pointsman.app.stream_age import STREAM_AGE_S
from pointsman.app.tls import TlsFiles
from pointsman.app.up import UpOptions, running, until_stopped
from pointsman.core import defaults
from pointsman.core.errors import PointsmanError
from pointsman.extproc import PickPolicy
from pointsman.xds import GatewayLimits
from pointsman.xds.limits import DEFAULT_LIMITS, MIB

FILE: Final = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--config",
    "config",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of manifests; edits take effect at once.",
)
@click.option("--simulate", is_flag=True, help="Serve a simulated vLLM replica at every endpoint.")
@click.option("--no-envoy", is_flag=True, help="Do not start Envoy: gateways run elsewhere (see `bootstrap`).")
@click.option("--grpc-address", default=defaults.LOOPBACK, show_default=True, help="xDS, picker and access logs.")
@click.option("--grpc-port", type=click.IntRange(0, 65_535), default=defaults.GRPC_PORT, show_default=True)
@click.option("--admin-address", default=defaults.LOOPBACK, show_default=True, help="Admin API.")
@click.option("--admin-port", type=click.IntRange(0, 65_535), default=defaults.ADMIN_PORT, show_default=True)
@click.option("--allow-plaintext", is_flag=True, help="Allow addresses other than loopback without TLS.")
@click.option("--tls-cert", type=FILE, help="Certificate of this control plane, with its chain (PEM). Followed.")
@click.option("--tls-key", type=FILE, help="Its private key (PEM). Followed.")
@click.option("--tls-client-ca", type=FILE, help="Who signs the certificates of gateways (PEM). Followed.")
@click.option("--trust-domain", default="", help="Only SPIFFE ids of this trust domain count.")
@click.option("--admin-token-file", type=FILE, help="The bearer token that the admin API demands.")
@click.option(
    "--admin-client-ca",
    type=FILE,
    help="Who signs the certificates of operators, which let them into the admin API without a token (PEM). Followed.",
)
@click.option(
    "--picker",
    "pickers",
    multiple=True,
    type=host_port,
    metavar="HOST:PORT",
    help="Where gateways reach a picker, in order of preference; repeat it. Default: the gRPC address.",
)
@click.option(
    "--stream-age",
    "stream_age_s",
    type=click.FloatRange(min=1),
    default=STREAM_AGE_S,
    show_default=True,
    metavar="SECONDS",
    help="Gateways open their streams again after this time, and so come back to their first control plane.",
)
@click.option(
    "--picker-workers",
    type=click.IntRange(0, 64),
    default=0,
    show_default=True,
    help="Processes that pick, on a port of their own; 0: the control plane picks.",
)
@click.option(
    "--picker-shell",
    type=click.Choice(["native", "grpc"]),
    default="native",
    show_default=True,
    help="What the picker workers serve with: our own HTTP/2, which costs less CPU, or the general gRPC library.",
)
@click.option(
    "--picker-peer",
    "picker_peers",
    multiple=True,
    type=host_port,
    metavar="HOST:PORT",
    help="gRPC address of another control plane, to share the load of its pickers; repeat it.",
)
@click.option(
    "--policy",
    type=click.Choice(["joint", "round-robin", "least-outstanding", "random"]),
    default="joint",
    show_default=True,
    help="How endpoints are picked; the others are for comparison.",
)
@click.option(
    "--default-pool",
    default="",
    metavar="NAMESPACE/NAME",
    help="The pool of requests from gateways of others, which do not name one.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".pointsman"),
    show_default=True,
    help="Folder for what survives a restart: weights set at run time, audit log; also logs, generated files.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Simulated replicas run this many times faster than the modelled GPU.",
)
@click.option(
    "--max-heap-mib",
    type=click.IntRange(min=16),
    default=DEFAULT_LIMITS.max_heap_bytes // MIB,
    show_default=True,
    help="Memory past which each Envoy that is started here refuses requests.",
)
@tracing_flags
@click.option("--xds-protocol", type=click.Choice(["delta", "sotw"]), default="delta", show_default=True)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the addresses here as JSON once everything is ready.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option("--log-format", type=click.Choice(["auto", "console", "json"]), default="auto")
def up(*, config: Path, log_level: str, log_format: Any, **chosen: Any) -> None:
    """Run the control plane and the picker, with Envoy and simulated pools if wanted, until Ctrl-C.

    \b
    Example:
      pointsman up --config examples/two-sites --simulate
    """
    configure_logs(level=log_level, format_=log_format)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter, which nobody asks for
    try:
        asyncio.run(_up(config, **chosen))
    except PointsmanError as error:
        refuse("up", error)


def _proof(admin: str, tls: TlsFiles | None, token_file: Path | None) -> str:
    """The options by which commands get into the admin API."""
    words = " --admin-ca FILE" if admin.startswith("https:") else ""
    if token_file is not None:
        return f"{words} --token-file {shlex.quote(str(token_file))}"
    return words + (" --client-cert FILE --client-key FILE" if tls and tls.admin_client_ca else "")


def _tls_files(
    certificate: Path | None, key: Path | None, client_ca: Path | None, admin_client_ca: Path | None
) -> TlsFiles | None:
    if certificate is None and key is None and client_ca is None:
        if admin_client_ca is not None:
            raise click.UsageError("--admin-client-ca needs --tls-cert, --tls-key and --tls-client-ca, too")
        return None
    if certificate is None or key is None or client_ca is None:
        raise click.UsageError("--tls-cert, --tls-key and --tls-client-ca belong together")
    return TlsFiles(certificate=certificate, key=key, client_ca=client_ca, admin_client_ca=admin_client_ca)


async def _up(
    config: Path,
    *,
    simulate: bool,
    no_envoy: bool,
    grpc_address: str,
    grpc_port: int,
    admin_address: str,
    admin_port: int,
    allow_plaintext: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    trust_domain: str,
    admin_token_file: Path | None,
    admin_client_ca: Path | None,
    pickers: tuple[tuple[str, int], ...],
    stream_age_s: float,
    picker_workers: int,
    picker_shell: str,
    picker_peers: tuple[tuple[str, int], ...],
    policy: str,
    default_pool: str,
    state: Path,
    speed: float,
    max_heap_mib: int,
    xds_protocol: str,
    ready_file: Path | None,
    **tracing: Any,
) -> None:
    tls = _tls_files(tls_cert, tls_key, tls_client_ca, admin_client_ca)
    if tls is not None and not no_envoy:
        raise click.UsageError("--tls-cert is for gateways that run elsewhere: say --no-envoy, too")
    options = UpOptions(
        control_plane=ControlPlaneOptions(
            config=config,
            state=state,
            grpc_address=grpc_address,
            grpc_port=grpc_port,
            admin_address=admin_address,
            admin_port=admin_port,
            allow_plaintext=allow_plaintext,
            tls=tls,
            trust_domain=trust_domain,
            admin_token_file=admin_token_file,
            pickers=pickers,
            stream_age_s=stream_age_s,
            picker_workers=picker_workers,
            picker_shell=PickerShell(picker_shell),
            picker_peers=picker_peers,
            policy=PickPolicy(policy),
            default_pool=default_pool,
            tracing=chosen_tracing(**tracing),
        ),
        state=state,
        simulate=simulate,
        envoy=not no_envoy,
        speed=speed,
        delta=xds_protocol == "delta",
        limits=GatewayLimits(max_heap_bytes=max_heap_mib * MIB),
        ready_file=ready_file,
    )

    async def serve() -> None:
        async with running(options) as addresses:
            click.echo(
                banner(
                    addresses,
                    envoys=not no_envoy,
                    tls=tls is not None,
                    proof=_proof(addresses.admin, tls, admin_token_file),
                )
            )
            await asyncio.Event().wait()

    await until_stopped(serve())
