#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# How long `xbbctl metrics` takes for many disks that have counted something: the median and the worst of 20 calls, with the time
# of the whole program; and what xbbd says that asking all workers took.
# usage: bench-metrics.sh [DISKS [CONFIGURATION]]     256 disks, of what was staged in build/release
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
disks=${1:-256}
root=$PWD/build/${2:-release}
# shellcheck source-path=SCRIPTDIR
. scripts/bench-lab.sh
start_lab metrics --no-standby
letters=(a b c d e f g h)
for ((disk = 0; disk < disks; disk++)); do
    domain=$((disk / 8 + 1))
    if ((disk % 8 == 0)); then xbb-loopback domain create --dir "$xen" "$domain" >/dev/null || exit 1; fi
    ctl attach "$domain" "xvd${letters[disk % 8]}" null,size=64M: >/dev/null || exit 1
done
# One disk of each domain has a guest for a moment, so that histograms are not empty.
for ((domain = 1; domain <= (disks + 7) / 8; domain++)); do
    xbb-blkfront load --dir "$xen" --domid "$domain" --rw randrw --bs 4k --depth 8 --count 200 >/dev/null || exit 1
done
times=()
for _ in $(seq 20); do
    before=$(date +%s%N)
    xbbctl metrics --socket "$run/xbbd.sock" >"$work/metrics" || exit 1
    times+=($((($(date +%s%N) - before) / 1000)))
    gathering+=("$(sed -nE 's/^xbb_gathering_duration_seconds (.*)/\1/p' "$work/metrics")")
done
mapfile -t times < <(printf '%s\n' "${times[@]}" | sort -n)
mapfile -t gathering < <(printf '%s\n' "${gathering[@]}" | sort -n)
echo "$disks disks, $(grep -c '^xbb_worker_up.* 1$' "$work/metrics") answered: median $((times[10] / 1000)).$((times[10] % 1000 / 100)) ms," \
    "worst $((times[19] / 1000)) ms, of which gathering ${gathering[10]} s; $(wc -l <"$work/metrics") lines," \
    "$(($(stat -c %s "$work/metrics") / 1024)) KiB; load average $(cut -d' ' -f1 /proc/loadavg)"
