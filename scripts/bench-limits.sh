#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# How near a disk comes to its limit: the null plugin under a load that always wants more, for ten seconds each. A line for each
# limit and size of requests, with what got through as part of the limit.
# usage: bench-limits.sh [SECONDS [QUEUES]]     what was staged in build/release, or in XBB_STAGE_DIR
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
seconds=${1:-10}
queues=${2:-1}
root=${XBB_STAGE_DIR:-$PWD/build/release}
# shellcheck source-path=SCRIPTDIR
. scripts/bench-lab.sh
start_lab limits --max-queues "$queues"
xbb-loopback domain create --dir "$xen" 1 >/dev/null
ctl attach 1 xvda null,size=1G: >/dev/null || exit 1

# Counters of the worker at both ends of the time, so that neither a start nor an end is measured.
# Sets `count`, and `moment`, in ns: the middle of the time that asking takes, which is long on a busy machine.
total() {
    local begin
    begin=$(date +%s%N)
    count=$(ctl stats 1 xvda --json | jq "[$1] | add")
    moment=$(((begin + $(date +%s%N)) / 2))
}
measure() { # SETTING UNIT BS RW COUNTERS
    local load before after from to passed
    ctl set 1 xvda "$1" >/dev/null || exit 1
    xbb-blkfront load --dir "$xen" --domid 1 --queues "$queues" --rw "$4" --bs "$3" --depth 16 --time $((seconds + 4)) >"$work/load" 2>&1 &
    load=$!
    sleep 2
    total "$5"
    from=$moment before=$count
    sleep "$seconds"
    total "$5"
    to=$moment after=$count
    wait "$load" || { cat "$work/load" >&2; exit 1; }
    ctl set 1 xvda "${1%%=*}=0" >/dev/null
    passed=$((after - before))
    awk -v passed="$((passed * $2))" -v ns=$((to - from)) -v limit="$(numfmt --from=iec "${1#*=}")" -v name="$1" -v bs="$3" \
        'BEGIN { printf "%-24s %-5s %9.3f %% of the limit\n", name, bs, passed / (ns / 1e9) / limit * 100 }'
}
measure total-iops-sec=1000 1 4k randrw .totals.reqs_received
measure total-iops-sec=20000 1 4k randread .totals.reqs_received
measure total-bytes-sec=10M 512 4k randread .totals.read_sectors,.totals.write_sectors
measure total-bytes-sec=100M 512 1M randread .totals.read_sectors,.totals.write_sectors
measure write-bytes-sec=50M 512 1M randwrite .totals.write_sectors
measure read-bytes-sec=400M 512 4k randread .totals.read_sectors
echo "$queues queues, $(nproc) cores, load average $(cut -d' ' -f1-3 /proc/loadavg)"
