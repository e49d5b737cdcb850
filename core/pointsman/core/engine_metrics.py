"""The few series of a model server's `/metrics` page that routing needs, found by a bounded scan of the text.

A general Prometheus parser takes 7.8 ms for a page of vLLM; 200 endpoints at 5 Hz would cost 7.8 cores (design D11).
Here each name is looked for in the raw bytes, and only lines of that name are parsed. Names of vLLM 0.6 to 0.32 and of
SGLang are known. Series that are absent, malformed, negative or not finite are None: absent is never zero.

Several series of one name are data-parallel ranks (label `engine` or `dp_rank`): counts, counters and capacities add
up, fractions are averaged. Tensor-parallel ranks of SGLang (`tp_rank` other than 0) repeat the first and are skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pointsman.core.errors import UpstreamError

MAX_PAGE_BYTES = 1024 * 1024
"""Longest page that is scanned: a real one has 50 KB for one engine, so this holds twenty data-parallel ranks."""

MAX_SERIES = 256
"""Most series of one name that are read: the largest data-parallel deployments have about a hundred ranks."""

_LINE = re.compile(
    rb"\n(?P<name>[a-zA-Z_:][\w:]*+)(?:\{(?P<labels>[^\"}\n]*+(?:\"(?:[^\"\\\n]++|\\[^\n])*+\"[^\"}\n]*+)*+)\})?"
    rb"[ \t]+(?P<value>[^\s]+)[ \t]*(?:-?\d+)?[ \t]*(?=\r?\n|\Z)"
)
_LABEL = re.compile(rb"([a-zA-Z_]\w*+)=\"((?:[^\"\\]++|\\.)*+)\"")
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """The names that one engine gives its series; the first that has samples is taken."""

    waiting: tuple[bytes, ...]
    running: tuple[bytes, ...]
    kv_usage: tuple[bytes, ...]
    prompt_tokens: tuple[bytes, ...]
    generation_tokens: tuple[bytes, ...]
    prefix_queries: tuple[bytes, ...]
    prefix_hits: tuple[bytes, ...]
    preemptions: tuple[bytes, ...]
    cache_config: bytes
    block_label: bytes
    blocks_label: bytes
    host_blocks_label: bytes
    max_tokens: tuple[bytes, ...]
    loras: bytes


_VLLM = _Names(
    waiting=(b"vllm:num_requests_waiting",),
    running=(b"vllm:num_requests_running",),
    kv_usage=(b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
    prompt_tokens=(b"vllm:prompt_tokens_total",),
    generation_tokens=(b"vllm:generation_tokens_total",),
    prefix_queries=(b"vllm:prefix_cache_queries_total", b"vllm:gpu_prefix_cache_queries_total"),
    prefix_hits=(b"vllm:prefix_cache_hits_total", b"vllm:gpu_prefix_cache_hits_total"),
    preemptions=(b"vllm:num_preemptions_total",),
    cache_config=b"vllm:cache_config_info",
    block_label=b"block_size",
    blocks_label=b"num_gpu_blocks",
    host_blocks_label=b"num_cpu_blocks",
    max_tokens=(),
    loras=b"vllm:lora_requests_info",
)
_SGLANG = _Names(
    waiting=(b"sglang:num_queue_reqs",),
    running=(b"sglang:num_running_reqs",),
    kv_usage=(b"sglang:token_usage",),
    prompt_tokens=(b"sglang:prompt_tokens_total",),
    generation_tokens=(b"sglang:generation_tokens_total",),
    prefix_queries=(),
    prefix_hits=(b"sglang:cached_tokens_total",),
    preemptions=(),
    cache_config=b"sglang:cache_config_info",
    block_label=b"page_size",
    blocks_label=b"num_pages",
    host_blocks_label=b"",
    max_tokens=(b"sglang:max_total_num_tokens",),
    loras=b"",
)
_START_TIME = (b"process_start_time_seconds",)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """What one page said; None where it said nothing usable.

    `waiting` and `running` are requests, `kv_usage` is a fraction 0..1, `block_tokens` tokens per KV block,
    `capacity_tokens` the KV pool of all ranks in tokens, `host_tokens` their host tier, `start_time_s` seconds since
    the epoch; the `…_total` values are counters in tokens (preemptions: events). `running_loras` are the adapters that
    have requests. `engines` are the model servers behind the address: `waiting` and `running` are means over them.
    """

    waiting: float | None = None
    running: float | None = None
    kv_usage: float | None = None
    block_tokens: int | None = None
    capacity_tokens: int | None = None
    host_tokens: int | None = None
    prompt_tokens_total: float | None = None
    generation_tokens_total: float | None = None
    prefix_queries_total: float | None = None
    prefix_hits_total: float | None = None
    preemptions_total: float | None = None
    start_time_s: float | None = None
    running_loras: frozenset[str] = frozenset()
    engines: int = 1

    @property
    def empty(self) -> bool:
        """True when the page named nothing of an engine's load or cache."""
        return self.waiting is None and self.running is None and self.kv_usage is None and self.block_tokens is None


def parse(page: bytes) -> EngineMetrics:
    """Read a `/metrics` page in the Prometheus text format (or OpenMetrics).

    Raises `UpstreamError` when the page is longer than `MAX_PAGE_BYTES`, or holds none of the series (it is not the
    page of an engine that we know).
    """
    if len(page) > MAX_PAGE_BYTES:
        raise UpstreamError(f"metrics page of {len(page)} bytes; at most {MAX_PAGE_BYTES} are read")
    text = b"\n" + page
    names = _VLLM if b"\nvllm:" in text else _SGLANG
    block_tokens, capacity_tokens, host_tokens = _cache_config(text, names)
    found = EngineMetrics(
        waiting=_total(text, names.waiting),
        running=_total(text, names.running),
        kv_usage=_mean_fraction(text, names.kv_usage),
        block_tokens=block_tokens,
        capacity_tokens=capacity_tokens,
        host_tokens=host_tokens,
        prompt_tokens_total=_total(text, names.prompt_tokens),
        generation_tokens_total=_total(text, names.generation_tokens),
        prefix_queries_total=_total(text, names.prefix_queries),
        prefix_hits_total=_total(text, names.prefix_hits),
        preemptions_total=_total(text, names.preemptions),
        start_time_s=_total(text, _START_TIME),
        running_loras=_loras(text, names.loras),
    )
    if found.empty:
        raise UpstreamError("no vLLM or SGLang series in the metrics page")
    return found


def _lines(text: bytes, name: bytes) -> Iterator[re.Match[bytes]]:
    """Samples of exactly this series name, without repeated tensor-parallel ranks.

    The format demands that the samples of one name stand together, so the scan ends with the first other line.
    """
    needle = b"\n" + name
    end = len(needle)
    position = text.find(needle + b"{")
    if position < 0:
        position = text.find(needle + b" ")
    for _ in range(MAX_SERIES):
        if position < 0 or not text.startswith(needle, position) or text[position + end] not in b"{ \t":
            return
        match = _LINE.match(text, position)
        if match is not None and _label(match, b"tp_rank", b"0") == b"0":
            yield match
        position = text.find(b"\n", position + end)


def _label(match: re.Match[bytes], name: bytes, default: bytes = b"") -> bytes:
    labels = match["labels"]
    if not labels or name not in labels:
        return default
    found: dict[bytes, bytes] = dict(_LABEL.findall(labels))
    return found.get(name, default)


def _value(match: re.Match[bytes]) -> float | None:
    try:
        value = float(match["value"])
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0.0 else None


def _values(text: bytes, names: tuple[bytes, ...]) -> list[float]:
    """The usable samples of the first of the names that has any."""
    for name in names:
        values = [value for line in _lines(text, name) if (value := _value(line)) is not None]
        if values:
            return values
    return []


def _total(text: bytes, names: tuple[bytes, ...]) -> float | None:
    values = _values(text, names)
    return math.fsum(values) if values else None


def _mean_fraction(text: bytes, names: tuple[bytes, ...]) -> float | None:
    values = _values(text, names)
    return min(1.0, math.fsum(values) / len(values)) if values else None


def _positive_int(text: bytes) -> int | None:
    """A label's number, None when it is none; more than 12 digits is no number of tokens."""
    return int(text) if text.isdigit() and len(text) <= 12 and int(text) > 0 else None


def _cache_config(text: bytes, names: _Names) -> tuple[int | None, int | None, int | None]:
    """Tokens per block, and tokens of the whole KV pool and of the host tier over all ranks."""
    block_tokens: int | None = None
    capacity_tokens: int | None = None
    host_tokens: int | None = None
    for line in _lines(text, names.cache_config):
        labels = dict(_LABEL.findall(line["labels"] or b""))
        size = _positive_int(labels.get(names.block_label, b""))
        blocks = _positive_int(labels.get(names.blocks_label, b""))
        block_tokens = block_tokens or size
        if size and blocks:
            capacity_tokens = (capacity_tokens or 0) + size * blocks
        host_blocks = _positive_int(labels.get(names.host_blocks_label, b"") if names.host_blocks_label else b"")
        if size and host_blocks:
            host_tokens = (host_tokens or 0) + size * host_blocks
    if capacity_tokens is None:
        tokens = _total(text, names.max_tokens)
        capacity_tokens = int(tokens) if tokens else None
    return block_tokens, capacity_tokens, host_tokens


def _loras(text: bytes, series: bytes) -> frozenset[str]:
    names: set[str] = set()
    for line in _lines(text, series) if series else ():
        listed = _ESCAPE.sub(rb"\1", _label(line, b"running_lora_adapters"))
        names.update(part for part in listed.decode("utf-8", "replace").split(",") if part)
    return frozenset(names)
