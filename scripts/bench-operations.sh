#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# How long a guest waits for what an administrator does to its disk: it reads, writes and verifies 4k, 200 times in a second, while each
# operation is done again and again. A line for each, with the longest waits of the guest, as many as there were operations.
# usage: bench-operations.sh [TIMES]     what was staged in build/release, or in XBB_STAGE_DIR; needs qemu-img
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
times=${1:-10}
root=${XBB_STAGE_DIR:-$PWD/build/release}
# shellcheck source-path=SCRIPTDIR
. scripts/bench-lab.sh
folder=$(mktemp -d "${TMPDIR:-/var/tmp}/xbb-images.XXXXXX") || exit 1
start_lab operations --backing-dir "$folder"
trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$work" "$folder"' EXIT
xbb-loopback domain create --dir "$xen" 1 >/dev/null
base=$folder/base.img
truncate -s 256M "$base"
ctl attach 1 xvda "raw:$base" >/dev/null || exit 1
# A guest that asks all the time takes the processors from what is measured.
ctl set 1 xvda total-iops-sec=200 >/dev/null || exit 1

measure() { # NAME, a function that gets the number of the repetition
    xbb-blkfront load --dir "$xen" --domid 1 --rw randrw --bs 4k --depth 1 --size 2M --verify crc32c --pauses 8 --json \
        --time "$((times * 2 + 4))" >"$work/load.json" &
    local load=$! number
    sleep 1
    for ((number = 1; number <= times; number++)); do
        # A process stands by again a second after the last start.
        sleep 1.5
        "$2" "$number" >"$work/out" 2>&1 || { cat "$work/out" >&2; exit 1; }
    done
    wait "$load" || { cat "$work/load.json" >&2; exit 1; }
    # The machine makes pauses of its own; as many of the longest as there were operations are taken for theirs.
    jq -r --arg name "$1" --argjson times "$times" '.pauses_ms | sort | .[-$times:] |
        if length < $times then "| \($name) | \($times) | less than 8 | \((.[-1] // 8) * 10 | round / 10) |"
        else "| \($name) | \($times) | \(.[length / 2 | floor] * 10 | round / 10) | \(.[-1] * 10 | round / 10) |" end' "$work/load.json"
}
limit() { ctl set 1 xvda total-iops-sec=$((200 + $1)); }
pause() { ctl pause 1 xvda && ctl resume 1 xvda; }
release() { ctl pause 1 xvda --release && ctl resume 1 xvda; }
upgrade() { ctl upgrade 1 xvda; }
resize() { ctl resize 1 xvda +1M; }
swap() { ctl swap 1 xvda --image "qcow2:$folder/swap-$1.qcow2"; }
snapshot() { ctl snapshot 1 xvda "$folder/snapshot-$1.qcow2"; }
commit() { ctl commit 1 xvda; }
# Leaves out the image between the topmost one and the one below that.
rebase() {
    local below=$((times - $1))
    if ((below > 0)); then ctl rebase 1 xvda --below "qcow2:$folder/snapshot-$below.qcow2"; else ctl rebase 1 xvda --below "raw:$base"; fi
}
echo "| operation | times | p50, ms | longest, ms |"
echo "|---|---|---|---|"
measure "set another limit" limit
ctl set 1 xvda total-iops-sec=200 >/dev/null
measure "pause, resume" pause
measure "pause --release, resume" release
measure "upgrade" upgrade
measure "resize" resize
below=$base format=raw
bytes=$(stat -c %s "$base")
for ((number = 1; number <= times; number++)); do
    qemu-img create -q -u -f qcow2 -b "$below" -F $format "$folder/swap-$number.qcow2" "$bytes" || exit 1
    below=$folder/swap-$number.qcow2 format=qcow2
done
measure "swap" swap
measure "commit" commit
measure "snapshot" snapshot
times=$((times - 1))
measure "rebase" rebase
echo "$(nproc) cores, load average $(cut -d' ' -f1-3 /proc/loadavg)"
