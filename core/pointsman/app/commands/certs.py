"""`pointsman certs`."""

from __future__ import annotations

from pathlib import Path

import click

from pointsman.app.commands.shared import refuse
from pointsman.app.trial_certificates import CertificateError, TrialCa


@click.group()
def certs() -> None:
    """Certificates for trying mutual TLS out.

    \b
    Example:
      pointsman certs make --out certs --gateway default/main
    """


@certs.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the files.")
@click.option("--gateway", "gateways", multiple=True, metavar="NAMESPACE/NAME", help="A gateway's; repeat it.")
@click.option("--operator", "operators", multiple=True, metavar="NAME", help="An operator's; repeat it.")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="A further name or address of control planes.")
@click.option("--trust-domain", default="pointsman.local", show_default=True)
@click.option("--days", type=click.IntRange(1, 365), default=30, show_default=True, help="How long they are valid.")
def make(
    *,
    out: Path,
    gateways: tuple[str, ...],
    operators: tuple[str, ...],
    hosts: tuple[str, ...],
    trust_domain: str,
    days: int,
) -> None:
    """Make a CA (kept if it is there), a control plane's certificate, and one for each gateway.

    Run it again for new certificates: everything that uses the old ones takes them over.

    \b
    Example:
      pointsman certs make --out certs --gateway default/main
      pointsman up --config examples/two-sites --no-envoy \\
        --tls-cert certs/server.pem --tls-key certs/server.key --tls-client-ca certs/ca.pem
    """
    if wrong := [gateway for gateway in gateways if gateway.count("/") != 1 or not all(gateway.split("/"))]:
        raise click.BadParameter(f"{wrong[0]!r} is not namespace/name, such as default/main", param_hint="--gateway")
    try:
        ca = TrialCa(out, days=days)
        made = [ca.certificate, *ca.server(hosts)]
        for gateway in gateways:
            made += ca.gateway([gateway], trust_domain=trust_domain)
        for operator in operators:
            made += ca.operator(operator, trust_domain=trust_domain)
    except CertificateError as error:
        refuse("certs make", error)
    click.echo("\n".join(str(path) for path in made))
