"""The `/metrics` page of a simulated replica: names, labels and text format of vLLM 0.32. Pure.

Times are wall seconds: what the engine counts in its own milliseconds is divided by the replica's speed before it gets
here, because a scraper knows no other clock. Series of parts that do not exist here (multi-modal cache, HTTP
middleware, Python's garbage collector) are left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pointsman.sim.engine import Engine
from pointsman.sim.sequence import Sequence as EngineSequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Bucket bounds as vLLM has them.
_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_S = (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
_STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
_PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)


def token_bounds(max_model_len: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to `max_model_len`: vLLM's bounds of token counts."""
    bounds: list[float] = []
    scale = 1
    while scale <= max_model_len:
        bounds += [float(m * scale) for m in (1, 2, 5) if m * scale <= max_model_len]
        scale *= 10
    return tuple(bounds)


class Histogram:
    """Counts by upper bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str, labels: dict[str, str]) -> Iterable[str]:
        """The samples `_bucket`, `_count` and `_sum`."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f"{name}_bucket{render_labels({**labels, 'le': bound})} {float(total)}"
        yield f"{name}_count{render_labels(labels)} {float(total)}"
        yield f"{name}_sum{render_labels(labels)} {float(self._sum)}"


class Observations:
    """What the counters of the engine do not hold: distributions over requests and steps, in wall seconds."""

    def __init__(self, max_model_len: int, speed: float) -> None:
        tokens = token_bounds(max_model_len)
        self._ms_per_s = 1000.0 * speed
        self.ttft = Histogram(_TTFT_S)
        self.inter_token = Histogram(_ITL_S)
        self.per_output_token = Histogram(_ITL_S)
        self.end_to_end = Histogram(_REQUEST_S)
        self.queue = Histogram(_REQUEST_S)
        self.inference = Histogram(_REQUEST_S)
        self.prefill = Histogram(_REQUEST_S)
        self.decode = Histogram(_REQUEST_S)
        self.prompt_tokens = Histogram(tokens)
        self.generation_tokens = Histogram(tokens)
        self.computed_tokens = Histogram(tokens)
        self.step_tokens = Histogram(_STEP_TOKENS)
        self.preemptions = Histogram(_PREEMPTIONS)

    def step(self, duration_ms: float, prefill_tokens: int, decodes: int) -> None:
        """A step of the engine ended (`StepObserver`)."""
        self.step_tokens.observe(prefill_tokens + decodes)
        if decodes:
            self.inter_token.observe(duration_ms / self._ms_per_s, decodes)

    def first_token(self, sequence: EngineSequence) -> None:
        """A request got its first token."""
        self.ttft.observe((sequence.first_token_ms - sequence.arrived_ms) / self._ms_per_s)

    def finished(self, sequence: EngineSequence) -> None:
        """A request ended well."""
        unit = self._ms_per_s
        decode_s = (sequence.finished_ms - sequence.first_token_ms) / unit
        self.end_to_end.observe((sequence.finished_ms - sequence.arrived_ms) / unit)
        self.queue.observe((sequence.scheduled_ms - sequence.ready_ms) / unit)
        self.inference.observe((sequence.finished_ms - sequence.scheduled_ms) / unit)
        self.prefill.observe((sequence.first_token_ms - sequence.scheduled_ms) / unit)
        self.decode.observe(decode_s)
        self.prompt_tokens.observe(sequence.prompt_tokens)
        self.computed_tokens.observe(sequence.prompt_tokens - sequence.cached_tokens)
        self.preemptions.observe(sequence.preemptions)
        if sequence.output_tokens:
            self.generation_tokens.observe(sequence.output_tokens)
            self.per_output_token.observe(decode_s / max(1, sequence.output_tokens - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Loras:
    """Adapters with requests in the batch and in the queue, and how many may run at once; `at_s` is now."""

    max_running: int
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    at_s: float


def render_labels(labels: dict[str, str]) -> str:
    """`{name="value",…}`, sorted by name as vLLM's client library does."""
    if not labels:
        return ""
    escaped = ((k, v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for k, v in sorted(labels.items()))
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped) + "}"


def render(engine: Engine, seen: Observations, *, model: str, started_s: float, loras: Loras | None = None) -> bytes:
    """The whole page. `started_s` is the wall time at which the replica (re)started, seconds since the epoch."""
    page = _Page(model, started_s)
    page.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", started_s, {})
    _load(page, engine)
    _caches(page, engine)
    _tokens(page, engine)
    for name, text, histogram in _histograms(seen):
        page.histogram(name, text, histogram)
    _cache_config(page, engine)
    if loras is not None:
        labels = {
            "max_lora": str(loras.max_running),
            "running_lora_adapters": ",".join(loras.running),
            "waiting_lora_adapters": ",".join(loras.waiting),
        }
        page.gauge("vllm:lora_requests_info", "Running stats on lora requests.", loras.at_s, labels)
    return page.bytes()


class _Page:
    def __init__(self, model: str, started_s: float) -> None:
        self._base = {"engine": "0", "model_name": model}
        self._started_s = started_s
        self._lines: list[str] = []

    def _head(self, name: str, text: str, kind: str) -> None:
        self._lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")

    def gauge(self, name: str, text: str, value: float, labels: dict[str, str] | None = None) -> None:
        self._head(name, text, "gauge")
        self._lines.append(f"{name}{render_labels(self._base if labels is None else labels)} {float(value)}")

    def by_label(self, name: str, text: str, label: str, values: dict[str, float]) -> None:
        self._head(name, text, "gauge")
        self._lines += (f"{name}{render_labels({**self._base, label: k})} {float(v)}" for k, v in values.items())

    def counter(self, name: str, text: str, value: float) -> None:
        self._head(f"{name}_total", text, "counter")
        self._lines.append(f"{name}_total{render_labels(self._base)} {float(value)}")
        self._head(f"{name}_created", text, "gauge")
        self._lines.append(f"{name}_created{render_labels(self._base)} {self._started_s}")

    def counters(self, name: str, text: str, label: str, values: dict[str, float]) -> None:
        for suffix, kind in (("total", "counter"), ("created", "gauge")):
            self._head(f"{name}_{suffix}", text, kind)
            for key, value in values.items():
                shown = float(value) if suffix == "total" else self._started_s
                self._lines.append(f"{name}_{suffix}{render_labels({**self._base, label: key})} {shown}")

    def histogram(self, name: str, text: str, histogram: Histogram) -> None:
        self._head(name, text, "histogram")
        self._lines += histogram.lines(name, self._base)
        self._head(f"{name}_created", text, "gauge")
        self._lines.append(f"{name}_created{render_labels(self._base)} {self._started_s}")

    def bytes(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode()


def _load(page: _Page, engine: Engine) -> None:
    page.gauge("vllm:num_requests_running", "Number of requests in model execution batches.", engine.running)
    page.gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", engine.waiting)
    page.by_label(
        "vllm:num_requests_waiting_by_reason",
        "Number of waiting requests by reason.",
        "reason",
        {"capacity": engine.waiting, "deferred": 0},
    )
    page.by_label(
        "vllm:engine_sleep_state",
        "Engine sleep state; awake = 0 means engine is sleeping.",
        "sleep_state",
        {"awake": 1, "weights_offloaded": 0, "discard_all": 0},
    )
    page.gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", engine.kv_usage)


def _caches(page: _Page, engine: Engine) -> None:
    counters = engine.counters
    for name, text, value in (
        (
            "prefix_cache_queries",
            "Prefix cache queries, in terms of number of queried tokens.",
            counters.prefix_queries,
        ),
        ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", counters.prefix_hits),
        ("external_prefix_cache_queries", "Queried tokens of the host tier.", counters.host_queries),
        ("external_prefix_cache_hits", "Cached tokens found in the host tier.", counters.host_hits),
        ("num_preemptions", "Cumulative number of preemption from the engine.", counters.preemptions),
    ):
        page.counter(f"vllm:{name}", text, value)


def _tokens(page: _Page, engine: Engine) -> None:
    counters = engine.counters
    cached, host = counters.cached_prompt_tokens, counters.host_prompt_tokens
    page.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", counters.prompt_tokens)
    page.counters(
        "vllm:prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        "source",
        {
            "local_compute": counters.prompt_tokens - cached,
            "local_cache_hit": cached - host,
            "external_kv_transfer": host,
        },
    )
    page.counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external).", cached)
    page.counters(
        "vllm:prompt_tokens_cached_by_source",
        "Prefix-cache hit tokens by the cache tier that supplied them.",
        "source",
        {
            "device": counters.prefix_hits,
            "host": counters.host_hits,
            "p2p": 0,
            "disk": 0,
            "external_unspecified": 0,
        },
    )
    page.counter("vllm:generation_tokens", "Number of generation tokens processed.", counters.generation_tokens)
    page.counters(
        "vllm:request_success",
        "Count of successfully processed requests.",
        "finished_reason",
        {**counters.finished, "repetition": 0},
    )


def _histograms(seen: Observations) -> Iterable[tuple[str, str, Histogram]]:
    return (
        ("vllm:request_prompt_tokens", "Number of prefill tokens processed.", seen.prompt_tokens),
        ("vllm:request_generation_tokens", "Number of generation tokens processed.", seen.generation_tokens),
        ("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", seen.step_tokens),
        ("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", seen.ttft),
        ("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", seen.inter_token),
        (
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            seen.per_output_token,
        ),
        ("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", seen.end_to_end),
        ("vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", seen.queue),
        ("vllm:request_inference_time_seconds", "Histogram of time spent in RUNNING phase.", seen.inference),
        ("vllm:request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", seen.prefill),
        ("vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", seen.decode),
        ("vllm:request_num_preemptions", "Histogram of the preemptions of a request.", seen.preemptions),
        (
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            seen.computed_tokens,
        ),
    )


def _cache_config(page: _Page, engine: Engine) -> None:
    config = engine.config
    labels = {
        "block_size": str(config.block_size),
        "cache_dtype": "auto",
        "enable_prefix_caching": "True",
        "engine": "0",
        "gpu_memory_utilization": "0.92",
        "kv_cache_size_tokens": str(config.num_gpu_blocks * config.block_size),
        "num_cpu_blocks": str(config.num_host_blocks) if config.num_host_blocks else "None",
        "num_gpu_blocks": str(config.num_gpu_blocks),
        "prefix_caching_hash_algo": "xxhash",
    }
    page.gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", 1.0, labels)
