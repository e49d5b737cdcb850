"""`pointsman explain`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from pointsman.app.client import Admin, admin_options
from pointsman.app.commands.shared import emit, output_option, refuse
from pointsman.app.commands.weights import percent
from pointsman.core.errors import PointsmanError

Json = Any

HEAD_CANDIDATES = 10
"""Candidates that a terminal shows; `-o json` has all."""


def _header(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for value in values:
        name, colon, text = value.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{value!r} is not NAME: VALUE")
        found.append((name.strip(), text.strip()))
    return found


@click.command("explain")
@click.argument("request_id", required=False, default="")
@click.option("--gateway", default="", metavar="NAMESPACE/NAME", help="Not needed where there is one.")
@click.option("--listener", default="", metavar="NAME|PORT", help="Not needed where the host has its port or one fits.")
@click.option("--host", default="", help="The Host of the request, with or without a port.")
@click.option("--path", default="", help="Its path, with or without a query.  [default: /v1/chat/completions]")
@click.option("--method", default="", help="Its method.  [default: POST with a body, else GET]")
@click.option("-H", "--header", "headers", multiple=True, callback=_header, metavar="'NAME: VALUE'", help="Repeat it.")
@click.option(
    "--body", type=click.File("r", encoding="utf-8"), metavar="FILE", help="Its body; - reads standard input."
)
@output_option
@admin_options
def explain(
    admin: Admin,
    *,
    request_id: str,
    gateway: str,
    listener: str,
    host: str,
    path: str,
    method: str,
    headers: list[tuple[str, str]],
    body: Any,
    output: str,
) -> None:
    """Explain where a request went, by its x-request-id (or pick id), or where one that you describe would go.

    Tells the rule, the bucket and arm of its split, the endpoints in order with each term of their cost in
    milliseconds, and who was filtered and why. Nothing is sent or counted. Only the last hundreds of requests are
    remembered.

    \b
    Exit code: 0 explained, 1 not remembered, or the question does not fit.
    Examples:
      pointsman explain 5f43fb4d-1a48-4a1c-b4d2-0a1b2c3d4e5f
      pointsman explain --host chat.example.com --path /v1/chat/completions -H 'x-user-id: alice'
      echo '{"model": "llama-3-8b", "prompt": "hello"}' | pointsman explain --path /v1/completions --body -
    """
    described = any((gateway, listener, host, path, method, headers, body))
    if bool(request_id) == described:
        raise click.UsageError("say a request id, or describe a request (--host, --path, -H, --body)")
    try:
        if request_id:
            found = admin.ask("GET", f"/api/v1/picks/{quote(request_id, safe='')}")
            emit(found, output, lambda: pick_lines(found))
            return
        asked: Json = {"gateway": gateway, "listener": listener, "host": host, "method": method, "headers": headers}
        asked |= {"path": path} if path else {}
        asked |= {"body": body.read()} if body else {}
        answer = admin.ask("POST", "/api/v1/explain", asked)
    except PointsmanError as error:
        refuse("explain", error)
    except UnicodeDecodeError as error:
        click.echo(f"pointsman explain: --body is not UTF-8: {error}", err=True)
        sys.exit(1)
    emit(answer, output, lambda: answer_lines(answer))


def answer_lines(answer: Json) -> Iterator[str]:
    """A hypothetical request for a terminal."""
    asked = answer["request"]
    yield f"{asked['method']} {asked['host']}{asked['path']} at {answer['gateway']}, listener {answer['listener']}"
    yield f"host    {answer['host'] or 'none fits'}"
    for one in answer["passed_over"]:
        yield f"passed  {one['rule']}: {'IN DOUBT: ' if one['doubtful'] else ''}{one['why']}"
    yield f"rule    {answer['rule'] or 'none matches'}"
    if answer["answer"]:
        yield f"answer  {answer['answer']['status']} {answer['answer']['reason']}, by the gateway itself"
        return
    yield from _arm_lines(answer["arm"])
    if not answer["picks"]:
        yield "pick    none: without a body the gateway balances by itself (GET /v1/models and the like)"
    for pick in answer["picks"]:
        yield ""
        yield from pick_lines(pick)


def _arm_lines(arm: Json) -> Iterator[str]:
    shares = ", ".join(f"{pool} {percent(weight)}" for pool, weight in arm["shares"].items())
    if arm["decided_by"] == "bucket":
        key = f" = {arm['key']}" if arm["key"] is not None else ""
        yield f"bucket  {arm['bucket']} of 10000, by {arm['sticky_by']}{key}"
        yield f"arm     {arm['pool'] or 'none'}  (weights: {shares})"
    elif arm["decided_by"] == "weights":
        yield f"arm     {arm['pool']}  (weights: {shares})"
    else:
        why = f"{arm['sticky_by']} is absent" if arm["sticky_by"] else "the split is not sticky"
        yield f"arm     {arm['pool']}{': ' if arm['pool'] else ''}chance decides, {why}: {shares}"


def pick_lines(pick: Json) -> Iterator[str]:
    """A decision of the picker for a terminal."""
    of = f"request {pick['request_id']}" if pick["request_id"] else "a pick now"
    yield f"{of}: {pick['pool']}, policy {pick['policy']}, {pick['prompt_tokens']} prompt tokens" + (
        f", model {pick['model']}" if pick["model"] else ""
    )
    if pick["asked_model"]:
        yield f"  renamed the client asked for model {pick['asked_model']}"
    if pick["request_id"] and pick["route"]:
        yield f"  rule    {pick['route']}"
        if pick["arm"]:
            yield from (f"  {line}" for line in _arm_lines(pick["arm"]))
    if pick["status"] != 200:
        yield f"  refused {pick['status'] or 'the gateway goes on without a pick'} {pick['reason']}"
    if pick["no_affinity_because"]:
        yield f"  no prefix affinity: {pick['no_affinity_because']}"
    names = pick["names"]
    wide = max((len(names.get(key, "")) + len(key) + 3 for key in (*names, *pick["filtered"])), default=24)
    if pick["endpoints"]:
        yield f"  order   {', '.join(names.get(key, key) for key in pick['endpoints'])}"
    for place, one in enumerate(pick["candidates"][:HEAD_CANDIDATES], 1):
        terms = ", ".join(f"{name} {value:g}" for name, value in one.get("terms_ms", {}).items())
        cost = f"{one['score_ms']:>10.1f} ms" if "score_ms" in one else ""
        cached = f", {one['cached_tokens']} tokens cached" if one.get("cached_tokens") else ""
        yield f"  {place:>2} {_called(names, one['endpoint']):<{wide}} {cost}  {terms}{cached}"
    if len(pick["candidates"]) > HEAD_CANDIDATES:
        yield f"     and {len(pick['candidates']) - HEAD_CANDIDATES} more"
    for key, why in pick["filtered"].items():
        yield f"   - {_called(names, key):<{wide}} filtered: {why}"


def _called(names: dict[str, str], key: str) -> str:
    """An endpoint's name with its address."""
    return f"{names[key]} ({key})" if key in names else key
