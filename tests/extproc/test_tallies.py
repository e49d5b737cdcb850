"""Counters and histograms without locks read like those of prometheus-client."""

from __future__ import annotations

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from pointsman.extproc.tallies import MAX_CHILDREN, Histogram, Tally

BOUNDS = (0.001, 0.01, 2.5)
CHILD = st.sampled_from([("a", "picked"), ("b", "over")])


def page(registry: CollectorRegistry) -> list[str]:
    """The lines of a scrape, without the times at which series were made."""
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if "_created" not in line)


@given(st.lists(st.tuples(CHILD, st.floats(0, 10))), st.lists(st.floats(0, 5)))
def test_a_scrape_cannot_tell_them_from_the_ones_with_locks(
    added: list[tuple[tuple[str, str], float]], observed: list[float]
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("picks", "Answers.", ["pool", "outcome"], registry=ours)
    counter = prometheus_client.Counter("picks", "Answers.", ["pool", "outcome"], registry=theirs)
    for child, amount in added:
        tally.add(child, amount)
        counter.labels(*child).inc(amount)
    plain, labelled = Histogram("took", "Time.", BOUNDS, registry=ours), ("pool",)
    by_pool = Histogram("ttft", "Time.", BOUNDS, labelled, registry=ours)
    took = prometheus_client.Histogram("took", "Time.", buckets=BOUNDS, registry=theirs)
    ttft = prometheus_client.Histogram("ttft", "Time.", labelled, buckets=BOUNDS, registry=theirs)
    for value in [*observed, *BOUNDS]:
        plain.observe(value)
        by_pool.observe(value, ("a",))
        took.observe(value)
        ttft.labels("a").observe(value)
    assert page(ours) == page(theirs)


def test_without_labels_a_counter_is_there_before_it_counts() -> None:
    registry = CollectorRegistry()
    tally = Tally("errors", "Errors.", registry=registry)
    assert registry.get_sample_value("errors_total") == 0
    tally.add()
    assert registry.get_sample_value("errors_total") == 1


def test_names_without_end_are_counted_together() -> None:
    registry = CollectorRegistry()
    tally = Tally("picks", "Answers.", ["pool"], registry=registry)
    times = Histogram("ttft", "Time.", BOUNDS, ["pool"], registry=registry)
    for number in range(MAX_CHILDREN + 5):
        tally.add((f"pool-{number}",))
        times.observe(1.0, (f"pool-{number}",))
    assert registry.get_sample_value("picks_total", {"pool": "other"}) == 5
    assert registry.get_sample_value("ttft_count", {"pool": "other"}) == 5
    assert registry.get_sample_value("picks_total", {"pool": "pool-0"}) == 1
