#!/bin/sh
# Makes the files in bench/policy/results: run.sh TRACE (Mooncake's conversation trace). About an hour on one core.
set -eu
trace=$1
results=$(dirname "$0")/results
mkdir -p "$results"
run() {
    name=$1
    shift
    pointsman bench policy --trace "$trace" --json "$results/$name.json" -o markdown "$@" >"$results/$name.md"
}
run a --workload A --load 77 --load 92 --load 102 --plots "$results"
run c --workload C --load 77 --load 92 --load 102 --plots "$results"
run b --workload B --load 77 --plots "$results"
