"""A taken port is told before anything starts."""

from __future__ import annotations

import socket

import pytest

from pointsman.app.ports import PortError, Wanted, check_free, is_loopback


def test_a_taken_port_names_the_port_and_its_setting() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortError) as caught:
            check_free([Wanted(address="127.0.0.1", port=port, purpose="the admin server", setting="--admin-port")])
    assert str(caught.value) == (
        f"the admin server cannot listen on 127.0.0.1:{port}: port {port} is in use by another process; "
        "set --admin-port"
    )
    check_free([Wanted(address="127.0.0.1", port=port, purpose="the admin server", setting="--admin-port")])


def test_one_port_wanted_twice() -> None:
    with pytest.raises(PortError, match="wanted twice: by a and by b"):
        check_free([Wanted(address="127.0.0.1", port=40_000, purpose=name, setting="s") for name in ("a", "b")])


def test_any_port_may_be_wanted_often() -> None:
    check_free([Wanted(address="127.0.0.1", port=0, purpose=name, setting="s") for name in ("a", "b")])


def test_a_foreign_address_is_told() -> None:
    with pytest.raises(PortError, match=r"192\.0\.2\.1 is not an address of this machine"):
        check_free([Wanted(address="192.0.2.1", port=40_001, purpose="x", setting="s")])


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)],
)
def test_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
