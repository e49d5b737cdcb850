"""What load reports cost the control plane: one report of a proxy, from its bytes to the table, without the network.

python bench/xds/load_reports.py
"""

from __future__ import annotations

import time

from envoy.service.load_stats.v3 import lrs_pb2
from processes import machine
from rich.console import Console
from rich.table import Table

from pointsman.xds.services import LoadTable
from pointsman.xds.services.load import read_report

ROUNDS = 30


def report(clusters: int, endpoints: int) -> bytes:
    """Every endpoint had traffic; one locality per cluster."""
    request = lrs_pb2.LoadStatsRequest()
    for number in range(clusters):
        stats = request.cluster_stats.add(cluster_name=f"bench/p{number}")
        stats.load_report_interval.FromSeconds(1)
        locality = stats.upstream_locality_stats.add(total_successful_requests=9 * endpoints, total_issued_requests=9)
        locality.locality.sub_zone = "east"
        for member in range(endpoints):
            entry = locality.upstream_endpoint_stats.add(total_successful_requests=9, total_issued_requests=9)
            entry.address.socket_address.address = f"127.0.{member >> 8}.{member & 255}"
            entry.address.socket_address.port_value = 8000
    return request.SerializeToString()


def main() -> None:
    console = Console(width=130)
    console.print(machine())
    table = Table(title="One load report")
    for column in ("clusters", "endpoints in all", "kB", f"CPU ms, best of {ROUNDS}"):
        table.add_column(column, justify="right")
    for clusters, endpoints in ((2, 8), (20, 10), (10, 100), (10, 1_000)):
        data, kept, best_s = report(clusters, endpoints), LoadTable(), float("inf")
        for turn in range(ROUNDS):
            began_s = time.process_time()
            kept.take(read_report(lrs_pb2.LoadStatsRequest.FromString(data), gateway="bench/gw", node="n"), turn)
            best_s = min(best_s, time.process_time() - began_s)
        cells = (str(clusters), f"{clusters * endpoints:,}", f"{len(data) / 1000:.1f}", f"{1000 * best_s:.2f}")
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    main()
