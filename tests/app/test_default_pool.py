"""A gateway of others that names no pool is served from the one that the operator named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from pointsman.app.control_plane import ControlPlane
from pointsman.app.control_plane_options import ControlPlaneOptions
from pointsman.core.wire import DESTINATION_KEY
from pointsman.extproc.server import EXT_PROC_SERVICE

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-sites"
POOL = "default/llama-stable"


@pytest.mark.parametrize("default_pool", ["", POOL])
async def test_a_request_without_a_pool_is_picked_for_the_default_one(tmp_path: Path, default_pool: str) -> None:
    options = ControlPlaneOptions(config=EXAMPLE, state=tmp_path, grpc_port=0, admin_port=0, default_pool=default_pool)
    headers = ext_proc.HttpHeaders(
        headers=base_pb2.HeaderMap(headers=[base_pb2.HeaderValue(key=":path", raw_value=b"/v1/models")]),
        end_of_stream=True,
    )
    async with ControlPlane(options) as plane, grpc.aio.insecure_channel(f"127.0.0.1:{plane.grpc_port}") as channel:
        call: Any = channel.stream_stream(
            f"/{EXT_PROC_SERVICE}/Process",
            request_serializer=ext_proc.ProcessingRequest.SerializeToString,
            response_deserializer=ext_proc.ProcessingResponse.FromString,
        )()
        await call.write(ext_proc.ProcessingRequest(request_headers=headers))
        answer = await call.read()
        call.cancel()
    assert (DESTINATION_KEY in str(answer)) is bool(default_pool)
