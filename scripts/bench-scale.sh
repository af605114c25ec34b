#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Many disks at once, each of a guest of its own, on sparse raw images: the time of an attach, memory of a disk, wake-ups of disks whose
# guests are connected and do nothing, all under load, and quiet disks beside a noisy one. Prints a table, with the machine's load.
# usage: bench-scale.sh [DISKS [SECONDS]]     (256, 10) what was staged in build/release, or in XBB_STAGE_DIR
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
disks=${1:-256}
seconds=${2:-10}
root=${XBB_STAGE_DIR:-$PWD/build/release}
# shellcheck source-path=SCRIPTDIR
. scripts/bench-lab.sh
start_lab scale
state() { echo "load average $(cut -d' ' -f1-3 /proc/loadavg) on $(nproc) cores"; }
row() { printf '%-52s %s\n' "$1" "$2"; }
# The load of a disk, until it is told to stop or its time is over; its report is a line of $work/NAME-DISK.
load() { # load NAME DISK OPTION...
    xbb-blkfront load --dir "$xen" --domid "$2" --timeout 120000 --json "${@:3}" >"$work/$1-$2" 2>>"$work/errors" &
}
reports() { cat "$work/$1"-*; }
# jq's filter for a percentile of an array of numbers.
percentile='def percentile(p): sort | .[((length - 1) * p) | floor];'

echo "before: $(state)"
milliseconds=()
for disk in $(seq "$disks"); do
    truncate -s 16M "$work/$disk.img"
    xbb-loopback domain create --dir "$xen" --pages 8192 --grant-entries 8192 "$disk" >/dev/null || exit 1
    from=$(date +%s%N)
    ctl attach "$disk" xvda "raw:$work/$disk.img" >/dev/null || exit 1
    milliseconds+=($((($(date +%s%N) - from) / 1000000)))
done
row "attach, ms: median, 99 %, longest" "$(printf '%s\n' "${milliseconds[@]}" | jq -sr "$percentile"'[percentile(.5), percentile(.99), max] | map(tostring) | join(", ")')"

# Guests that are stopped as soon as they are connected.
for disk in $(seq "$disks"); do load idle "$disk" --rw randread --bs 4k --depth 1 --time 3600; done
connected() { [[ $(ctl list --json | jq '[.vbds[] | select(.state == "connected")] | length') -eq $disks ]]; }
for _ in $(seq 1200); do connected && break; sleep 0.5; done
connected || { echo "bench-scale: not all disks were connected" >&2; cat "$work/errors" >&2; exit 1; }
mapfile -t guests < <(jobs -p | tail -n "$disks")
kill -STOP "${guests[@]}"
daemon=$(pgrep -f -o -- "xbbd --loopback $xen ")
family() { pgrep -P "$daemon"; for worker in $(pgrep -P "$daemon"); do pgrep -P "$worker"; done; }
# Nobody looks at a disk any more after two looks that found nothing.
sleep 40
memory() { # memory FIELD: of all processes of disks, in KiB
    local process
    for process in $(family); do grep "^$1:" "/proc/$process/smaps_rollup" 2>/dev/null; done | awk '{ sum += $2 } END { print sum + 0 }'
}
row "memory of a connected disk, MiB: Pss, of that private" \
    "$(awk -v pss="$(memory Pss)" -v clean="$(memory Private_Clean)" -v dirty="$(memory Private_Dirty)" -v disks="$disks" \
        'BEGIN { printf "%.1f, %.1f", pss / disks / 1024, (clean + dirty) / disks / 1024 }')"
sleeps() { # sleeps PROCESS...: how often their threads have gone to sleep
    local process
    for process in "$@"; do cat "/proc/$process"/task/*/status 2>/dev/null; done | awk '/^voluntary_ctxt_switches/ { sum += $2 } END { print sum + 0 }'
}
mapfile -t processes < <(family)
before=$(sleeps "${processes[@]}") daemons=$(sleeps "$daemon")
sleep 60
row "wake-ups of an idle disk in a second" \
    "$(awk -v n=$(($(sleeps "${processes[@]}") - before)) -v disks="$disks" 'BEGIN { printf "%.4f", n / 60 / disks }')"
row "wake-ups of xbbd in a second" "$(awk -v n=$(($(sleeps "$daemon") - daemons)) 'BEGIN { printf "%.2f", n / 60 }')"
kill -CONT "${guests[@]}"
kill "${guests[@]}"
wait "${guests[@]}" 2>/dev/null

for disk in $(seq "$disks"); do load all "$disk" --rw randread --bs 4k --depth 4 --time "$seconds"; done
mapfile -t guests < <(jobs -p | tail -n "$disks")
wait "${guests[@]}"
row "all at once, 4k reads, depth 4: IOPS of all" "$(reports all | jq -s '[.[].read.iops] | add | floor')"
row "  a disk's IOPS: least, median, most" "$(reports all | jq -sr "$percentile"'[.[].read.iops] | [min, percentile(.5), max] | map(floor | tostring) | join(", ")')"
row "  a disk's p99, ms: median, worst" "$(reports all | jq -sr "$percentile"'[.[].read.latency_us["p99"] / 1000] | [percentile(.5), max] | map(. * 10 | round / 10 | tostring) | join(", ")')"

# Four quiet disks, one request at a time; beside them one that always wants more; and that one with a limit.
quiet() { # quiet NAME WHAT
    local disk waiting=()
    for disk in 1 2 3 4; do load "$1" "$disk" --rw randread --bs 4k --depth 1 --time "$seconds" && waiting+=($!); done
    wait "${waiting[@]}"
    row "four quiet disks$2, µs: p50, p99" "$(reports "$1" | jq -sr '[.[].read.latency_us] | [(map(.p50) | add / length), (map(.p99) | max)] | map(round | tostring) | join(", ")')"
}
quiet alone ""
noise() { load noise 5 --rw randrw --bs 64k --depth 64 --time $((seconds + 4)) && noisy=$! && sleep 2; }
noise
quiet beside " beside a noisy one"
wait "$noisy"
ctl set 5 xvda total-bytes-sec=20M >/dev/null
noise
quiet limited " beside it, limited to 20 MiB/s"
wait "$noisy"
[[ ! -s $work/errors ]] || { sort "$work/errors" | uniq -c | sort -rn | head -5 >&2; }
for disk in $(seq "$disks"); do ctl detach "$disk" xvda >/dev/null || { echo "bench-scale: disk $disk is not detached" >&2; exit 1; }; done
echo "after: $(state)"
