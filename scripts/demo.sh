#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# shellcheck disable=SC2317
# Serves real images by the real host through shared rings on loopback, and drives them with standard clients.
# The last line is "demo: ok", "demo: FAILED" or, after Ctrl-C, "demo: interrupted ...". Everything is in one folder below
# TMPDIR (/var/tmp).
# shellcheck disable=SC2317  # functions that a trap calls
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
root=$PWD/build/release
export PATH=$root/bin:$PATH
parent=${TMPDIR:-/var/tmp}
needed=3072
available=$(df --output=avail -BM "$parent" | tail -1 | tr -dc 0-9)
if ((${available:-0} < needed)); then
    echo "demo: $needed MiB are needed in $parent and ${available:-none} are free; TMPDIR=/PATH names another folder" >&2
    echo "demo: FAILED"
    exit 1
fi
work=$(mktemp -d "$parent/xbb-demo.XXXXXX") || exit 1
xen=$work/xen
socket=$work/run/xbbd.sock
steps=11
step=0
loop=
declare -A exports
started=$SECONDS

say() { step=$((step + 1)); printf '[%d/%d] %s\n' "$step" "$steps" "$*"; }
info() { printf '      %s\n' "$*"; }
ctl() { xbbctl "$@" --loopback "$xen" --socket "$socket"; }

cleanup() {
    result=$?
    trap - EXIT
    trap '' INT TERM HUP
    disown -a
    # Everything that was started has the folder on its command line, workers of a dead xbbd too.
    [[ $result -eq 0 ]] && pkill -f "$work/"
    for _ in $(seq 50); do
        [[ $result -eq 0 ]] || break
        pgrep -f "$work/" >/dev/null || break
        sleep 0.1
    done
    pkill -KILL -f "$work/"
    [[ -n $loop ]] && losetup -d "$loop" 2>/dev/null
    case $result in
        0) rm -rf "$work"; echo "demo: ok" ;;
        130) rm -rf "$work"; echo "demo: interrupted, nothing is left of it" ;;
        *)
            for log in "$work"/*.log; do [[ -s $log ]] && { echo "--- $log"; tail -15 "$log"; }; done
            echo "demo: what is needed to understand it is in $work; remove that folder afterwards"
            echo "demo: FAILED"
            ;;
    esac
    exit "$result"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
fail() { echo "demo: $*" >&2; exit 1; }

wait_for() { # wait_for SECONDS WHAT COMMAND...
    local limit=$1 what=$2
    shift 2
    for _ in $(seq $((limit * 20))); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    fail "$what did not happen within $limit s"
}

# In a session of its own, which Ctrl-C does not reach: it would take Xen from under requests, which then never end.
spawn() { setsid "$@" & }
# run LOG COMMAND...: waits so that Ctrl-C ends the demo, whatever the command does.
run() { setsid "${@:2}" >"$1" 2>&1 & wait $!; }

export_disk() { # export_disk VDEV: an NBD socket whose requests go through the ring of that disk
    spawn nbdkit --foreground --exit-with-parent --unix "$work/$1.nbd" "$root/lib/nbdkit/nbdkit-xbb-plugin.so" \
        dir="$xen" domid=1 vdev="$1" >"$work/nbdkit-$1.log" 2>&1
    exports[$1]=$!
    wait_for 15 "the export of $1" nbdinfo --size "nbd+unix:///?socket=$work/$1.nbd"
}

kill_worker() { # kill_worker VDEV SECONDS: three times, so long after each other, under whatever it is doing
    local process number
    for number in 1 2 3; do
        sleep "$2"
        process=$(ctl list --json | jq -r --arg disk "$1" 'first(.. | objects | select(.device? == $disk) | .pid // empty)')
        [[ -n $process ]] && kill -KILL "$process" && echo "$number" >"$work/killed-$1"
    done
}

fio_verify() { # fio_verify VDEV MEGABYTES [OPTION...]
    run "$work/fio-$1.log" fio --name="verify-$1" --ioengine=nbd --uri="nbd+unix:///?socket=$work/$1.nbd" --rw=randwrite \
        --bsrange=4k-256k --size="$2"M --iodepth=32 --verify=crc32c --verify_fatal=1 --do_verify=1 \
        --randseed=20 --fsync=64 --verify_state_save=0 --output="$work/fio-$1.json" --output-format=json "${@:3}" ||
        fail "fio --verify failed on $1"
    jq -r '.jobs[0] | "fio: \(.error) errors, wrote \(.write.io_bytes / 1048576 | floor) MiB at \(.write.bw / 1024 | floor) MiB/s, read back \(.read.io_bytes / 1048576 | floor) MiB at \(.read.bw / 1024 | floor) MiB/s"' \
        "$work/fio-$1.json" | while read -r line; do info "$line"; done
}

fio_killed() { # fio_killed VDEV SECONDS MEGABYTES [OPTION...]: fio_verify, while its worker is killed
    local killer
    kill_worker "$1" "$2" 2>"$work/kill.log" &
    killer=$!
    fio_verify "$1" "${@:3}"
    wait "$killer"
    [[ -s $work/killed-$1 ]] || fail "the worker of $1 was not killed"
    info "its worker was killed $(<"$work/killed-$1") times meanwhile; the guest saw a delay and no error"
}

say "making an ext4 image with files in it, and a qcow2 image over a copy of it"
mkdir -p "$work/tree/docs"
cp -r README.md CHANGELOG.md docs "$work/tree/docs/"
for number in $(seq 1 40); do head -c $((number * 20000)) /dev/urandom >"$work/tree/file-$number"; done
mke2fs -q -t ext4 -d "$work/tree" -L demo "$work/ext4.img" 128M || fail "mke2fs failed"
mkdir "$work/templates"
cp "$work/ext4.img" "$work/templates/template.img"
qemu-img create -q -f qcow2 -b templates/template.img -F raw "$work/written.qcow2" 256M || fail "qemu-img create"
truncate -s 1G "$work/scratch.img"
truncate -s 1G "$work/device.img"
disks=(xvda xvdb xvdd)
if [[ $(id -u) -eq 0 ]] && loop=$(losetup --find --show --direct-io=on "$work/device.img" 2>/dev/null); then
    disks+=(xvdc)
    info "RawDisk serves $loop"
else
    loop=
    info "no loop device can be had here: RawDisk is left out"
fi

say "starting Xen without Xen: XenStore, grant tables and event channels in shared memory"
mkdir -p "$xen" "$work/run"
spawn xbb-loopback run --dir "$xen" >"$work/loopback.log" 2>&1
wait_for 10 "the start of xbb-loopback" test -S "$xen/xenstored.sock"
wait_for 10 "the first answer of XenStore" env XENSTORED_PATH="$xen/xenstored.sock" xenstore-read -s /local/domain/0/domid
xbb-loopback domain create --dir "$xen" 1 >>"$work/loopback.log" 2>&1 || fail "domain 1 cannot be made"

say "starting xbbd"
spawn xbbd --loopback "$xen" --run-dir "$work/run" --plugin-dir "$root/lib/xbb/plugins" \
    --backing-dir "$work/templates" >"$work/xbbd.log" 2>&1
wait_for 10 "the start of xbbd" test -S "$socket"

say "attaching disks, as a toolstack does"
ctl attach 1 xvda "raw:$work/ext4.img" || fail "attach xvda"
ctl attach 1 xvdb "raw:$work/scratch.img" || fail "attach xvdb"
ctl attach 1 xvdd "qcow2:$work/written.qcow2" || fail "attach xvdd"
[[ -n $loop ]] && { ctl attach 1 xvdc "raw:$loop" || fail "attach xvdc"; }
for disk in "${disks[@]}"; do export_disk "$disk"; done
ctl list
info "XenStore, as the real xenstore-ls sees it:"
XENSTORED_PATH="$xen/xenstored.sock" xenstore-ls -f /local/domain/0/backend/vbd/1/51712 | grep -E 'sectors|feature|state' |
    sed 's/^/      /'

say "copying the filesystem out through the ring, and comparing it"
run "$work/copy-out.log" nbdcopy "nbd+unix:///?socket=$work/xvda.nbd" "$work/copy.img" || fail "nbdcopy"
run "$work/compare.log" qemu-img compare -q -f raw -F raw "$work/ext4.img" "$work/copy.img" || fail "the copy differs"
e2fsck -fn "$work/copy.img" >"$work/e2fsck.log" 2>&1 || fail "e2fsck found errors in the copy"
info "identical, and e2fsck finds no error"

say "copying it into another disk through the ring"
run "$work/copy-in.log" nbdcopy --flush "$work/ext4.img" "nbd+unix:///?socket=$work/xvdb.nbd" || fail "nbdcopy into the scratch disk"
cmp -n $((128 << 20)) "$work/ext4.img" "$work/scratch.img" || fail "what arrived in the image differs"
head -c $((128 << 20)) "$work/scratch.img" >"$work/arrived.img"
e2fsck -fn "$work/arrived.img" >"$work/e2fsck.log" 2>&1 || fail "e2fsck found errors in what was copied in"
info "identical in the image file, and e2fsck finds no error"

say "writing and verifying at random, 4k to 256k, depth 32 (File), while its worker is killed"
fio_killed xvdb 1 1024
if [[ -n $loop ]]; then
    say "the same on a block device (RawDisk on $loop)"
    fio_verify xvdc 1024
else
    say "skipped: RawDisk needs root and a loop device"
fi

say "the same on a qcow2 image (QCOW): half of it is written, the rest is read from its template"
# Content that depends on the place alone, so that the same can be written to a model.
written=(--io_size=128M --verify=pattern --verify_pattern=%o)
fio_killed xvdd 0.5 256 "${written[@]}"
# What workers that were killed had reserved is given back when the disk is written again.
again=(--name=again --rw=randwrite --bs=16k --offset=240M --size=16M --io_size=4M --randseed=21 --verify=pattern --verify_pattern=%o --verify_state_save=0)
run "$work/fio-again.log" fio --ioengine=nbd --uri="nbd+unix:///?socket=$work/xvdd.nbd" --verify_fatal=1 "${again[@]}" || fail "fio failed on xvdd"

say "what the host counted"
for disk in "${disks[@]}"; do
    ctl stats 1 "$disk" --json >"$work/stats-$disk.json" || fail "stats of $disk"
    jq -r --arg disk "$disk" '
        def us: . / 1000 | floor;
        "\($disk): \(.totals.reqs_completed) requests in \(.totals.total_dispatch) reqlists (\(.totals.requests_merged) merged), "
        + "\(.totals.reqs_completed_with_error) errors, "
        + "\(.totals.read_sectors / 2048 | floor) MiB read, \(.totals.write_sectors / 2048 | floor) MiB written, "
        + "\(.totals.flush_requests) flushes",
        (.latency_ns | to_entries[] | select(.value.count > 0)
         | "      \(.key): \(.value.count) done, p50 \(.value.p50 | us) us, p99 \(.value.p99 | us) us, p99.9 \(.value.p999 | us) us")' \
        "$work/stats-$disk.json" | while IFS= read -r line; do info "$line"; done
    requests=$(jq .totals.reqs_completed "$work/stats-$disk.json")
    [[ $requests -gt 0 ]] || fail "the requests of $disk were not counted"
    errors=$(jq .totals.reqs_completed_with_error "$work/stats-$disk.json")
    [[ $errors -eq 0 ]] || fail "$disk had $errors errors"
done

say "detaching the qcow2 disk, and looking at its image with qemu-img"
kill "${exports[xvdd]}"
wait "${exports[xvdd]}" 2>/dev/null
ctl detach 1 xvdd || fail "detach of xvdd"
qemu-img check -q "$work/written.qcow2" >"$work/check.log" 2>&1 || fail "qemu-img check finds errors or lost clusters in the qcow2 image"
cp --sparse=always "$work/ext4.img" "$work/model.img"
truncate -s 256M "$work/model.img"
run "$work/model.log" fio --name=verify-xvdd --ioengine=psync --filename="$work/model.img" --rw=randwrite --bsrange=4k-256k --size=256M \
    --randseed=20 --do_verify=0 --verify_state_save=0 "${written[@]}" || fail "fio failed on the model"
run "$work/model.log" fio --ioengine=psync --filename="$work/model.img" --do_verify=0 "${again[@]}" || fail "fio failed on the model"
qemu-img compare -q -f qcow2 -F raw "$work/written.qcow2" "$work/model.img" >>"$work/check.log" 2>&1 || fail "the qcow2 image differs from its model"
cmp -s "$work/ext4.img" "$work/templates/template.img" || fail "the template was written to"
info "no error, no lost cluster, and the same content as a raw model; nobody wrote to the template"
info "took $((SECONDS - started)) s without the build"
exit 0
