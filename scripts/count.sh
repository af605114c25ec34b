#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Counts the instructions of a request in the host with callgrind: the same on a busy machine as on an idle one.
#
# Counted is QueueLoop.turn() and all that it calls, the null plugin and the loopback's grant copy (without the data)
# among it; beside it, the C echo backend on the same ring with the same frontend.
# usage: count.sh [--functions]     needs what `make build-release` built
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo "count: valgrind is missing: apt-get install valgrind" >&2; exit 1; }
functions=${1:-}
requests=100000
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# valgrind cannot read Swift's debug sections.
strip -g -o "$work/xbb-bench" build/release/bin/xbb-bench

# In mangled names a word that the module's name has, too, is a number: QueueLoop of BlockQueue is 0B4Loop.
# The warm-up of xbb-bench, a tenth of the requests, is counted like the rest.
count() { # backend depth function
    valgrind --tool=callgrind --callgrind-out-file="$work/$1-$2" --toggle-collect="$3" "$work/xbb-bench" ring \
        --plugin-dir build/release/lib/xbb/plugins --repeat 1 --requests "$requests" --depth "$2" --backend "$1" \
        >/dev/null 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
    awk -v n=$((requests + requests / 10)) '/^summary:|^totals:/ { printf "%.0f\n", $2 / n; exit }' "$work/$1-$2"
}

for depth in 32 256; do
    echo "instructions per request, depth $depth: XBB $(count xbb $depth '*LoopV4turn*')," \
        "C echo $(count c_echo $depth cecho_serve)"
done
if [[ $functions == --functions ]]; then
    callgrind_annotate --auto=no "$work/xbb-256" | swift demangle -simplified |
        awk -v n=$((requests + requests / 10)) '/^ *[0-9,]+ *\(/ { gsub(",", "", $1); value = $1 / n; $1 = ""
            sub(/\?\?\?:/, ""); sub(/ \[.*/, ""); if (value >= 1) printf "%8.1f %s\n", value, $0 }'
fi
