"""Checks that somebody else answers: webhooks and PromQL queries, bounded in time and size.

No answer, a late one and one that makes no sense are all the same: no data. What that means is the policy's to say
(`analysis.onNoData`); it is never a guess.
"""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any, Final, Literal

import aiohttp
import msgspec

from pointsman.rollout.analysis import CheckResult, Verdict
from pointsman.rollout.spec import Check, Source
from pointsman.rollout.state import State

MAX_ANSWER_BYTES: Final = 64 * 1024
_SHOWN_CHARS: Final = 200


class _Answer(msgspec.Struct):
    verdict: Literal["Good", "Bad"]
    why: str = ""


class _Series(msgspec.Struct):
    value: tuple[float, str]


class _Data(msgspec.Struct, rename="camel"):
    result_type: Literal["scalar", "vector"]
    result: msgspec.Raw


class _Query(msgspec.Struct):
    status: Literal["success"]
    data: _Data


async def ask(session: aiohttp.ClientSession, check: Check, state: State) -> CheckResult:
    """The verdict of one outside check, within its time-out."""
    try:
        async with asyncio.timeout(check.timeout_s):
            if check.source is Source.WEBHOOK:
                return await _webhook(session, check, state)
            return await _prometheus(session, check)
    except RecursionError:
        return _no_data(check, "the answer is nested too deep")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, msgspec.MsgspecError) as error:
        text = f"no answer within {check.timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
        return _no_data(check, text or type(error).__name__)


async def _webhook(session: aiohttp.ClientSession, check: Check, state: State) -> CheckResult:
    question = {
        "policy": state.spec.name,
        "check": check.name,
        "step": state.step + 1,
        "steps": len(state.spec.steps),
        "weight": state.weight / 10_000,
        "stable": state.spec.stable,
        "canary": state.spec.canary,
        "attempt": state.attempt,
    }
    async with session.post(check.url, json=question, allow_redirects=False) as response:
        content = await _content(response)
    answer = msgspec.json.decode(content, type=_Answer)
    return CheckResult(name=check.name, verdict=Verdict(answer.verdict), why=answer.why[:_SHOWN_CHARS])


async def _prometheus(session: aiohttp.ClientSession, check: Check) -> CheckResult:
    url = f"{check.url.rstrip('/')}/api/v1/query"
    async with session.get(url, params={"query": check.query}, allow_redirects=False) as response:
        content = await _content(response)
    return judged(check, number_of(content))


def number_of(content: bytes) -> float | None:
    """The one number of a Prometheus answer; None for an empty result and for NaN.

    Raises:
        ValueError: it has several series.
        msgspec.MsgspecError: it is no such answer.
    """
    data = msgspec.json.decode(content, type=_Query).data
    if data.result_type == "scalar":
        _, text = msgspec.json.decode(data.result, type=tuple[float, str])
    else:
        series = msgspec.json.decode(data.result, type=Annotated[list[_Series], msgspec.Meta(max_length=10_000)])
        if len(series) > 1:
            raise ValueError(f"the query has {len(series)} series, not one: aggregate them, for instance with sum()")
        if not series:
            return None
        text = series[0].value[1]
    value = float(text)
    return None if math.isnan(value) else value


def judged(check: Check, value: float | None) -> CheckResult:
    """A query's value against its limit."""
    assert check.limit is not None
    if value is None:
        return _no_data(check, "the query has no result")
    good = value >= check.limit.value if check.at_least else value <= check.limit.value
    bound = f"{'at least' if check.at_least else 'at most'} {check.limit.value:g}"
    return CheckResult(
        name=check.name,
        verdict=Verdict.GOOD if good else Verdict.BAD,
        why=f"{value:g}, allowed {bound}",
        canary=value if math.isfinite(value) else None,
    )


async def _content(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(16 * 1024):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    if response.status != 200:
        raise ValueError(f"it answers {response.status}")
    return bytes(content)


def _no_data(check: Check, why: Any) -> CheckResult:
    return CheckResult(name=check.name, verdict=Verdict.NO_DATA, why=f"{why}"[:_SHOWN_CHARS])
