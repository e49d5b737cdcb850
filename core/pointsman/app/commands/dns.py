"""`pointsman dns`."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from pointsman.app.client import Admin, admin_options
from pointsman.app.commands.shared import emit, output_option, refuse
from pointsman.app.dns_export import MAX_TTL_S, MIN_TTL_S, DnsExportError, dns_endpoint, entries_of
from pointsman.core.config.syntax import hostname
from pointsman.core.errors import PointsmanError


def _entry(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    found = [value.partition("=") for value in values]
    for gateway, _, address in found:
        if not gateway or not address:
            raise click.BadParameter("expected GATEWAY=ADDRESS, such as default/main=192.0.2.10")
    return [(gateway, address) for gateway, _, address in found]


def _host(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if complaint := hostname(value):
        raise click.BadParameter(complaint[0])
    return value


@click.group()
def dns() -> None:
    """Entry gateways for DNS: which of them clients may be sent to.

    \b
    Example:
      pointsman dns export --host chat.example.com --entry default/main=192.0.2.10
    """


@dns.command("export")
@click.option("--host", required=True, callback=_host, help="The name that clients use.")
@click.option(
    "--entry",
    "addresses",
    multiple=True,
    callback=_entry,
    metavar="GATEWAY=ADDRESS",
    help="Where clients reach a gateway; repeat it. Without any: the addresses that listeners bind.",
)
@click.option(
    "--ttl", "ttl_s", type=click.IntRange(MIN_TTL_S, MAX_TTL_S), default=20, show_default=True, help="Seconds."
)
@click.option("--namespace", default="default", show_default=True, help="Of the manifest.")
@click.option("--set-identifier", "identifier", default="", help="Where several control planes export the same name.")
@click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the manifest there, whole or not at all.",
)
@output_option
@admin_options
def export(
    admin: Admin,
    *,
    host: str,
    addresses: list[tuple[str, str]],
    ttl_s: int,
    namespace: str,
    identifier: str,
    file: Path | None,
    output: str,
) -> None:
    """Make a DNSEndpoint manifest for external-dns with the entries that are healthy now.

    The table lists the entries; `-o yaml`, `-o json` and `--file` have the manifest.

    An entry is healthy when a proxy of the gateway is connected and has acknowledged its listeners. With none nothing
    is written, so that DNS keeps what it has.

    \b
    Exit code: 0 written, 1 no entry is healthy.
    Examples:
      pointsman dns export --host chat.example.com --entry default/main=192.0.2.10 --file entry.yaml
      pointsman dns export --host chat.example.com --set-identifier eu-west -o yaml
    """
    try:
        entries = entries_of(admin.ask("GET", "/api/v1/status"), addresses)
        manifest = dns_endpoint(entries, host=host, ttl_s=ttl_s, namespace=namespace, identifier=identifier)
    except PointsmanError as error:
        refuse("dns export", error)
    for entry in entries:
        if entry.why:
            click.echo(f"left out: {entry.gateway} {entry.address}: {entry.why}", err=True)
    if file is not None:
        _write(file, yaml.safe_dump(manifest, sort_keys=False))
    emit(manifest, output, lambda: (f"{entry.gateway} {entry.address}" for entry in entries if not entry.why))


def _write(file: Path, text: str) -> None:
    """Whole or not at all: whoever watches the file never reads half of it."""
    draft = file.with_name(f".{file.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        refuse("dns export", DnsExportError(f"{file} can't be written: {error.strerror}"))
