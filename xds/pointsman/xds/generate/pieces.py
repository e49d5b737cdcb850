"""Small protobuf values that several builders need."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2, extension_pb2
from envoy.type.metadata.v3 import metadata_pb2
from google.protobuf import any_pb2, duration_pb2, wrappers_pb2
from google.protobuf.message import Message

from pointsman.core.model import HeaderEdit

GATEWAY_ERROR: Final = "gateway_error"
"""`error.type` of answers that come from the gateway and not from a model server or the picker."""


def any_of(message: Message) -> any_pb2.Any:
    """Pack with deterministic bytes."""
    return any_pb2.Any(
        type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}",
        value=message.SerializeToString(deterministic=True),
    )


def extension(name: str, message: Message) -> extension_pb2.TypedExtensionConfig:
    """A named extension with its configuration."""
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=any_of(message))


def ms(milliseconds: int) -> duration_pb2.Duration:
    """Milliseconds as a Duration."""
    seconds, rest = divmod(milliseconds, 1000)
    return duration_pb2.Duration(seconds=seconds, nanos=rest * 1_000_000)


def u32(value: int) -> wrappers_pb2.UInt32Value:
    """A wrapped integer: 0 is a value, absent is Envoy's default."""
    return wrappers_pb2.UInt32Value(value=value)


def boolean(value: bool) -> wrappers_pb2.BoolValue:
    """A wrapped bool: false is a value, absent is Envoy's default."""
    return wrappers_pb2.BoolValue(value=value)


def socket(address: str, port: int) -> address_pb2.Address:
    """A TCP address."""
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=address, port_value=port))


def is_ip(address: str) -> bool:
    """Whether `address` is an IP literal and not a name."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def ads(initial_fetch_timeout_ms: int) -> config_source_pb2.ConfigSource:
    """Get it over the aggregated stream."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        resource_api_version=config_source_pb2.V3,
        initial_fetch_timeout=ms(initial_fetch_timeout_ms),
    )


def metadata_key(namespace: str, key: str) -> metadata_pb2.MetadataKey:
    """`namespace` and one step of path."""
    return metadata_pb2.MetadataKey(key=namespace, path=[metadata_pb2.MetadataKey.PathSegment(key=key)])


def literal(value: str) -> str:
    """Escape for the places where Envoy expands `%COMMAND%` in header values."""
    return value.replace("%", "%%")


def set_header(name: str, value: str) -> base_pb2.HeaderValueOption:
    """Replace or add a header with this literal value."""
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, value=literal(value)),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        keep_empty_value=True,
    )


def header_options(edit: HeaderEdit) -> Iterable[base_pb2.HeaderValueOption]:
    """The `set` and `add` parts of an edit, in that order."""
    for name, value in edit.set:
        yield set_header(name, value)
    for name, value in edit.add:
        yield base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=name, value=literal(value)),
            append_action=base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD,
            keep_empty_value=True,
        )


def embedded(number: int, data: bytes) -> bytes:
    """Field `number` with a message, as it stands in the serialised message around it: tag, length, content."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits per byte, least significant first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
