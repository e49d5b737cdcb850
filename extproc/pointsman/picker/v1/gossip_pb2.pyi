from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Update(_message.Message):
    __slots__ = ("picker", "epoch", "version", "whole", "loads", "prefixes", "outcomes", "block_bytes")
    PICKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    picker: str
    epoch: int
    version: int
    whole: bool
    loads: _containers.RepeatedCompositeFieldContainer[Load]
    prefixes: _containers.RepeatedCompositeFieldContainer[Prefix]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    block_bytes: int
    def __init__(self, picker: _Optional[str] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., whole: _Optional[bool] = ..., loads: _Optional[_Iterable[_Union[Load, _Mapping]]] = ..., prefixes: _Optional[_Iterable[_Union[Prefix, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ..., block_bytes: _Optional[int] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("endpoint", "requests", "backlog_us", "pending_tokens", "context_tokens", "fresh_kv_tokens")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_US_FIELD_NUMBER: _ClassVar[int]
    PENDING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FRESH_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    requests: int
    backlog_us: int
    pending_tokens: int
    context_tokens: int
    fresh_kv_tokens: int
    def __init__(self, endpoint: _Optional[str] = ..., requests: _Optional[int] = ..., backlog_us: _Optional[int] = ..., pending_tokens: _Optional[int] = ..., context_tokens: _Optional[int] = ..., fresh_kv_tokens: _Optional[int] = ...) -> None: ...

class Prefix(_message.Message):
    __slots__ = ("endpoint", "blocks")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, endpoint: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("pick", "ended", "upstream", "status", "ttft_us", "attempts", "failed")
    PICK_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TTFT_US_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    pick: str
    ended: bool
    upstream: str
    status: int
    ttft_us: int
    attempts: int
    failed: bool
    def __init__(self, pick: _Optional[str] = ..., ended: _Optional[bool] = ..., upstream: _Optional[str] = ..., status: _Optional[int] = ..., ttft_us: _Optional[int] = ..., attempts: _Optional[int] = ..., failed: _Optional[bool] = ...) -> None: ...
