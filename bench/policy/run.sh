#!/bin/sh
# Makes the rows, plots and tables of the policy benchmark: run.sh TRACE (Mooncake's conversation trace).
# Goes on where it was stopped; delete results/report-slice.json to begin again (about an hour and a half of one core).
set -eu
trace=$1
here=$(dirname "$0")
rows=$here/results/report-slice.json
page=$here/../../docs/performance.md
mkdir -p "$here/results"
run() {
    pointsman bench policy --trace "$trace" --json "$rows" --add "$@" >/dev/null
}
main='--policy joint --policy llm-d --policy llm-d-local --policy gorgo-best --policy oracle'
more="$main --policy round-robin --policy least-outstanding --policy skywalker --policy lpwl --policy lpwl-local"
# shellcheck disable=SC2086 # lists of options
{
    run --workload A --workload C --load 77 --load 92 --load 102 $main
    run --workload A --workload C --load 77
    run --workload A --workload C --load 77 --robustness
    for workload in B D H M R; do
        run --workload "$workload" --load 77 $more
    done
    run --workload M --load 77 --policy joint-by-hand --policy joint-production
}
run --load 77 --plots "$here/results" --docs "$page"
