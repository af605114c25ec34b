#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# How long a guest waits when its worker is killed: one guest reads 4k at a time, or writes, and its worker is killed again and again.
# usage: bench-kill.sh [KILLS [FORMAT:PATH [kill|upgrade [randread|randwrite]]]]     what was staged in build/release; a file by default
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
kills=${1:-60}
image=${2:-raw:}
how=${3:-kill}
load_kind=${4:-randread}
root=$PWD/build/release
# shellcheck source-path=SCRIPTDIR
. scripts/bench-lab.sh
start_lab kill --restart-limit 1000000 --restart-window 1
xbb-loopback domain create --dir "$xen" 1 >/dev/null
truncate -s 64M "$work/image"
[[ $image == raw: ]] && image+=$work/image
ctl attach 1 xvda "$image" >/dev/null || exit 1
xbb-blkfront load --dir "$xen" --domid 1 --rw "$load_kind" --bs 4k --depth 1 --pauses 5 --json --time "$((kills * 22 / 10 + 4))" \
    >"$work/load.json" &
load=$!
sleep 1
for _ in $(seq "$kills"); do
    # A process stands by again a second after the last start.
    sleep 2
    if [[ $how == upgrade ]]; then
        ctl upgrade 1 xvda >/dev/null || exit 1
        continue
    fi
    read -r process _ <"$run/vbd-vbd-1-51712.lock"
    kill -KILL "$process"
done
wait "$load" || exit 1
# The machine makes pauses of its own; as many of the longest as there were kills are taken for those of the kills.
jq -r --argjson kills "$kills" '.pauses_ms | sort | .[-$kills:] |
    "\($kills) times: median \(.[length / 2 | floor]) ms, 90 %: \(.[length * 0.9 | floor]) ms, shortest \(.[0]) ms, longest \(.[-1]) ms"' \
    "$work/load.json"
jq -r --argjson kills "$kills" '"\(.pauses_ms | length - $kills) other pauses of 5 ms or more"' "$work/load.json"
echo "$(nproc) cores, load average $(cut -d' ' -f1-3 /proc/loadavg)"
[[ -n ${KEEP_LOG:-} ]] && cp "$work/xbbd.log" "$KEEP_LOG"
exit 0
