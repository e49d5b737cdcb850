"""What `pointsman up` says once it is ready."""

from __future__ import annotations

import pytest

from pointsman.app.banner import banner
from pointsman.app.up import Running

RUNNING = Running(
    grpc="127.0.0.1:18000",
    admin="http://127.0.0.1:18001",
    gateways={"default/main": ["http://127.0.0.1:8080"]},
    model="llama",
)


def test_who_gets_an_envoy_is_told_to_ask_it() -> None:
    told = banner(RUNNING)
    assert "curl -N http://127.0.0.1:8080/v1/chat/completions" in told
    assert "bootstrap" not in told


@pytest.mark.parametrize(("tls", "files"), [(False, ""), (True, " --tls-cert FILE --tls-key FILE --tls-ca FILE")])
def test_who_gets_none_is_told_how_to_start_one(tls: bool, files: str) -> None:
    told = banner(RUNNING, envoys=False, tls=tls)
    assert f"  pointsman bootstrap --gateway default/main --xds 127.0.0.1:18000{files} --out envoy && envoy" in told
    assert told.index("bootstrap") < told.index("curl")


def test_the_status_command_can_be_pasted_where_the_admin_api_wants_proof() -> None:
    told = banner(RUNNING, proof=" --token-file token")
    assert f"  pointsman status --admin {RUNNING.admin} --token-file token\n" in told
