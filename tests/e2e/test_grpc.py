"""A GRPCRoute: streams in both directions and trailers, through the gateway, with a pick from the headers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from pointsman.sim.v1.generate_pb2 import ChatRequest, GenerateRequest, GenerateResponse
from support.fleet import MODEL, Fleet, Layout, running_fleet

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SERVICE = "/pointsman.sim.v1.Generator"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    async with running_fleet(folder, Layout(grpc={"us-east": 2, "eu-west": 1})) as running:
        yield running


async def picks(fleet: Fleet) -> float:
    """Picks for the pool so far."""
    async with fleet.session.get(f"{fleet.admin}/metrics") as response:
        lines = (await response.text()).splitlines()
    ours = [one for one in lines if one.startswith("pointsman_picks_total{") and 'pool="default/grpc"' in one]
    return sum(float(line.rpartition(" ")[2]) for line in ours)


async def test_unary_stream_and_bidi_end_with_the_replicas_trailers(fleet: Fleet) -> None:
    async with grpc.aio.insecure_channel(fleet.grpc_target) as channel:
        unary = channel.unary_unary(
            f"{SERVICE}/Generate",
            request_serializer=GenerateRequest.SerializeToString,
            response_deserializer=GenerateResponse.FromString,
        )(GenerateRequest(model=MODEL, prompt="hello", max_tokens=5))
        answer = await unary
        assert answer.tokens == 5
        assert dict(await unary.trailing_metadata())["x-tokens"] == "5"
        assert dict(await unary.trailing_metadata())["x-sim-replica"] == answer.replica

        stream = channel.unary_stream(
            f"{SERVICE}/GenerateStream",
            request_serializer=GenerateRequest.SerializeToString,
            response_deserializer=GenerateResponse.FromString,
        )(GenerateRequest(model=MODEL, prompt="hello", max_tokens=40))
        tokens = 0
        async for part in stream:
            tokens += part.tokens
        assert tokens == 40
        assert dict(await stream.trailing_metadata())["x-tokens"] == "40"
        assert await stream.code() is grpc.StatusCode.OK

        chat = channel.stream_stream(
            f"{SERVICE}/Chat",
            request_serializer=ChatRequest.SerializeToString,
            response_deserializer=GenerateResponse.FromString,
        )()
        for turn in range(3):  # each answer is read before the next question is asked: nothing is buffered
            await chat.write(ChatRequest(model=MODEL, text=f"turn {turn}", max_tokens=3))
            heard = 0
            while heard < 3:
                part = await chat.read()
                assert isinstance(part, GenerateResponse)
                heard += part.tokens
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
        assert dict(await chat.trailing_metadata())["x-tokens"] == "9"


async def test_an_error_keeps_its_code_message_and_trailers(fleet: Fleet) -> None:
    async with grpc.aio.insecure_channel(fleet.grpc_target) as channel:
        call = channel.unary_unary(
            f"{SERVICE}/Generate",
            request_serializer=GenerateRequest.SerializeToString,
            response_deserializer=GenerateResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(GenerateRequest(model="no-such-model", prompt="hello", max_tokens=5))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "no-such-model" in (caught.value.details() or "")
        assert "x-sim-replica" in dict(caught.value.trailing_metadata())


async def test_each_call_is_picked_and_calls_are_spread(fleet: Fleet) -> None:
    before = await picks(fleet)
    async with grpc.aio.insecure_channel(fleet.grpc_target) as channel:
        call = channel.unary_unary(
            f"{SERVICE}/Generate",
            request_serializer=GenerateRequest.SerializeToString,
            response_deserializer=GenerateResponse.FromString,
        )
        replicas = {(await call(GenerateRequest(model=MODEL, prompt=f"{n}", max_tokens=1))).replica for n in range(40)}
    assert len(replicas) > 1, "one connection, several replicas: requests are balanced, not connections"
    assert await picks(fleet) == before + 40
