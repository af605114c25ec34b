#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# shellcheck disable=SC2317  # functions that a trap calls
# Kills workers at random under verified load, xbbd with them now and then, and counts what the guests saw.
#
# Guests with a disk each: on files, with rings of 4 and of 32 pages, for root one on a loop device, and a qcow2 image that is
# written over a template, and has no error and no lost cluster at the end (qemu-img check), and a file on four queues. The
# requests of the first, the qcow2 and the four queues' guest overlap, and what is read is checked against all that was
# acknowledged (--verify history). Now and then a disk is handed over to another worker (xbbctl upgrade); with `both` these are of the debug and the release build in turn,
# so that each goes on where the other one stopped or died. The image of guest 2 is renamed, removed or exchanged for another
# file before half of its workers end: the open file is what counts. While workers of guests 1 and 2 end, another process has
# QEMU's lock of a reader on the image (bytes 100 to 299), asks for that of a writer, or is qemu-img or qemu-io; the writer's it
# must not get. At the end nothing may be lost, mapped, bound or left running.
# MODE says what guests and workers make use of: `mixed` (four queues for one guest, what else is usual for all), `plain` (one queue,
# 11 pages a request, copies), `indirect` (128 pages), `persistent` (pages stay mapped), `queues` (four queues and 128 pages for
# each guest), `all` (all of these). Both ends are asked at the end whether they did: the run fails where a connection had less, or
# where a worker counted no request of that kind. With `rbd` there is one guest alone, on an image of a real Ceph that runs here
# (ceph-lab.sh).
# With `nbd` there are three guests, on exports of nbdkit over a Unix socket, of qemu-nbd over TCP and of nbdkit in TLS; now and then
# a server is killed and started again.
# A VHD in blocks is written by guest 7 in the same way. XBB_KILL_GUESTS ("7", "4 7") leaves the other guests out.
# usage: kill-test.sh [KILLS [debug|release|both [MILLISECONDS [MODE]]]]   what was staged; mean time between two kills (250)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
kills=${1:-100}
builds=("$PWD/build/${2:-debug}")
[[ ${2:-} != both ]] || builds=("$PWD"/build/{release,debug})
between=${3:-250}
mode=${4:-mixed}
# Pages of the largest request, and what a read or a write of the overlapping load has at most.
segments=32 largest=60k queues_of_all='' persistent=false seconds_of_run=6
case $mode in
mixed) ;;
rbd | nbd) seconds_of_run=30 ;;
plain) segments=11 largest=24k queues_of_all=1 ;;
indirect) segments=128 queues_of_all=1 ;;
persistent) segments=11 largest=24k queues_of_all=1 persistent=true ;;
queues) segments=128 queues_of_all=4 ;;
all) segments=128 queues_of_all=4 persistent=true ;;
*) echo "kill-test: no mode $mode" >&2; exit 64 ;;
esac
worker_options=(--max-queues "${queues_of_all:-4}" --max-indirect-segments "$((segments > 11 ? 2 * segments : 0))"
    --persistent-grants "$($persistent && echo on || echo off)")
guest_options=(--indirect "$segments")
! $persistent || guest_options+=(--persistent)
export PATH=${builds[0]}/bin:$PATH SWIFT_BACKTRACE=enable=no
work=$(mktemp -d "${TMPDIR:-/var/tmp}/xbb-kill.XXXXXX") || exit 1
# The build that workers which start now are of.
current=$work/current
xen=$work/xen
run=$work/run
loop=
domains=()

worker() { # worker DOMAIN: the process that the disk's lock names, if it is a worker and alive
    local process
    read -r process _ 2>/dev/null <"$run/vbd-vbd-$1-51712.lock" || return 1
    [[ $(readlink "/proc/$process/exe") == "$PWD"/build/*/bin/xbb-vbd ]] && echo "$process"
}
# The other build, if there are two.
change_build() {
    builds=("${builds[@]:1}" "${builds[0]}")
    ln -sfn "${builds[0]}" "$current"
}
cleanup() {
    result=$?
    trap - EXIT INT TERM
    local left
    left=$(jobs -p)
    # shellcheck disable=SC2086  # numbers
    [[ -n $left ]] && kill $left 2>/dev/null
    [[ -z ${locker_PID:-} ]] || kill "$locker_PID" 2>/dev/null
    for domain in "${domains[@]}"; do left=$(worker "$domain") && kill -KILL "$left"; done
    wait 2>/dev/null
    [[ -n $loop ]] && losetup -d "$loop" 2>/dev/null
    [[ $mode != rbd ]] || scripts/ceph-lab.sh stop "$work/ceph"
    if [[ $result -eq 0 ]]; then rm -rf "$work"; else echo "kill-test: FAILED; logs are in $work"; fi
    exit "$result"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
fail() { echo "kill-test: $*" >&2; exit 1; }
wait_for() { # wait_for WHAT COMMAND...
    for _ in $(seq 600); do "${@:2}" >/dev/null 2>&1 && return 0; sleep 0.05; done
    fail "$1 did not happen within 30 s"
}
# The server of a guest of mode `nbd`.
serve() { # serve GUEST
    case $1 in
    8) nbdkit -f -U "$work/8.sock" file "$work/8.img" & ;;
    9) qemu-nbd -t -e 8 -f raw -b 127.0.0.1 -p "$nbd_port" "$work/9.img" & ;;
    10) nbdkit -f -U "$work/10.sock" --tls=require --tls-psk="$work/psk" file "$work/10.img" & ;;
    esac
    server[$1]=$!
}
# A server ends, at once or in order, and comes back.
restart_server() { # restart_server GUEST
    kill "-$((RANDOM % 2 ? 9 : 15))" "${server[$1]}" 2>/dev/null
    wait "${server[$1]}" 2>/dev/null
    rm -f "$work/$1.sock"
    sleep "0.$((RANDOM % 10))"
    serve "$1" >>"$work/servers.log" 2>&1
}
# Starts a server again that ended by itself; 1 if it did not. nbdkit 1.32 may fail an assertion of its own where a client dies
# while several of its threads answer (connections.c, raw_send_socket).
revive() { # revive GUEST
    [[ -n ${server[$1]:-} ]] && ! kill -0 "${server[$1]}" 2>/dev/null || return 1
    rm -f "$work/$1.sock"
    serve "$1" >>"$work/servers.log" 2>&1
    revived=$((revived + 1))
}
start_xbbd() {
    xbbd --loopback "$xen" --run-dir "$run" --plugin-dir "$current/lib/xbb/plugins" --worker "$current/bin/xbb-vbd" \
        "${worker_options[@]}" --backing-dir "$work/templates" --restart-limit 1000000 --restart-window 1 >>"$work/xbbd.log" 2>&1 &
    xbbd=$!
}
# Guest 2's name leads nowhere, or to another file, until the next call of `mend`.
mislead() {
    case $((RANDOM % 3)) in
    0) mv "$work/2.img" "$work/2.away" ;;
    1) ln "$work/2.img" "$work/2.away" && rm "$work/2.img" ;;
    2) mv "$work/2.img" "$work/2.away" && cp --sparse=always "$work/other" "$work/2.img" ;;
    esac
    misled=$((misled + 1))
}
mend() {
    [[ -e $work/2.away ]] || return 0
    if [[ -e $work/2.img ]]; then cmp -s "$work/2.img" "$work/other" || fail "guest 2 wrote to another file"; fi
    mv "$work/2.away" "$work/2.img"
}
# What the name of a guest's image was made for; it may lead elsewhere at the moment.
image_of() { # image_of GUEST
    if [[ -e $work/$1.away ]]; then echo "$work/$1.away"; else echo "$work/$1.img"; fi
}
# The process beside: "read PATH" takes a reader's lock of all of QEMU's bytes, "free" gives it back; "write PATH" asks for a
# writer's lock until an empty line comes, and then says whether it got it.
locks() {
    python3 -u - 3<&0 <<'END'
import fcntl, os, select, sys
commands = os.fdopen(3)
held = None
for line in commands:
    word, _, path = line.strip().partition(" ")
    if held is not None:
        os.close(held)
        held = None
    if not word:
        continue
    if word == "free":
        print("free")
        continue
    held = os.open(path, os.O_RDONLY if word == "read" else os.O_RDWR)
    if word == "read":
        # One byte after the other, as QEMU does.
        for byte in range(100, 300):
            fcntl.lockf(held, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, byte)
        print("held")
        continue
    print("asking")
    result, asked = "refused", 0
    while not select.select([commands], [], [], 0.0005)[0]:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB, 200, 100)
            result = "got"
            break
        except OSError:
            asked += 1
    print(result)
END
}
tell() { # tell WORD [PATH]: what the process beside answers
    echo "$*" >&"${locker[1]}"
    read -r -t 30 -u "${locker[0]}" answer || fail "the process that takes locks has ended"
}
# Somebody reads or would write the image of a guest, until `leave`.
interfere() { # interfere GUEST HOW-ITS-WORKER-ENDS
    case $((RANDOM % 4)) in
    0) tell read "$(image_of "$1")" && readers=$((readers + 1)) ;;
    1)
        # Where xbbd has no files of the guest, nobody has the lock between two workers.
        [[ ${kept[$1]} -eq 1 && $2 != both ]] || return 0
        tell write "$(image_of "$1")" && asking=$1 writers=$((writers + 1))
        ;;
    2) qemu-img info -f raw "$(image_of "$1")" >/dev/null 2>&1 & programs=$((programs + 1)) ;;
    3) qemu-io -r -f raw -c 'read 0 4k' -c 'sleep 200' "$(image_of "$1")" >/dev/null 2>&1 & programs=$((programs + 1)) ;;
    esac
}
leave() {
    if [[ -n $asking ]]; then
        echo >&"${locker[1]}"
        read -r -t 30 -u "${locker[0]}" answer || fail "the process that takes locks has ended"
        [[ $answer == refused ]] || fail "another process got the lock of guest $asking's image while a worker ended: $answer"
        asking=
    fi
    tell free
}
ctl() { xbbctl "$@" --loopback "$xen" --socket "$run/xbbd.sock"; }

mkdir -p "$xen" "$run" "$work/templates"
ln -s "${builds[0]}" "$current"
xbb-loopback run --dir "$xen" >"$work/loopback.log" 2>&1 &
wait_for "the start of xbb-loopback" xbb-loopback domain list --dir "$xen"
start_xbbd
wait_for "the start of xbbd" test -S "$run/xbbd.sock"
truncate -s 64M "$work"/{1,2,3,5}.img "$work/other"
printf 'another file' | dd of="$work/other" conv=notrunc status=none
# Half of the template has data, and the disk is larger than it: its clusters are copied, made and zeroed.
head -c 24M /dev/urandom >"$work/templates/4.img"
truncate -s 48M "$work/templates/4.img"
qemu-img create -q -f qcow2 -b templates/4.img -F raw "$work/4.qcow2" 64M || fail "qemu-img create"
qemu-img create -q -f vpc -o force_size=on "$work/7.vhd" 64M || fail "qemu-img create of a VHD"
template=$(sha256sum <"$work/templates/4.img")
# By the numbers of the domains.
images=([1]="raw:$work/1.img" [2]="raw:$work/2.img" [4]="qcow2:$work/4.qcow2" [5]="raw:$work/5.img" [7]="vhd:$work/7.vhd")
if [[ $mode != rbd && $mode != nbd && $(id -u) -eq 0 ]] && loop=$(losetup --find --show "$work/3.img" 2>/dev/null); then
    images[3]=raw:$loop
else
    loop=
fi
pages=([1]=4 [2]=32 [3]=1 [4]=8 [5]=2 [6]=8 [7]=8)
if [[ $mode == rbd ]]; then
    scripts/ceph-lab.sh start "$work/ceph" cephx 1 $$ || fail "no Ceph"
    rbd --conf "$work/ceph/ceph.conf" create rbd/6 --size 64 || fail "rbd create"
    images=([6]="rbd,conf=$work/ceph/ceph.conf,run-dir=$work/clients:rbd/6")
fi
if [[ $mode == nbd ]]; then
    nbd_port=$((20000 + $$ % 20000))
    truncate -s 64M "$work"/{8,9,10}.img
    psktool -u xen -p "$work/psk" >/dev/null 2>&1 || fail "psktool"
    # Where xbbd is killed with a worker, and no service manager has the connections, nobody can prove what a server still does.
    images=([8]="nbd,fence-timeout=1:nbd+unix:///?socket=$work/8.sock" [9]="nbd,fence-timeout=1:nbd://127.0.0.1:$nbd_port"
        [10]="nbd,fence-timeout=1:nbds+unix://xen@/?socket=$work/10.sock&tls-psk-file=$work/psk")
    pages[8]=8 pages[9]=4 pages[10]=2
fi
for domain in "${!images[@]}"; do
    [[ -z ${XBB_KILL_GUESTS:-} || " $XBB_KILL_GUESTS " == *" $domain "* ]] || unset "images[$domain]"
done
queues_of() { # queues_of DOMAIN: rings that it asks for
    local usual=1
    [[ $1 -ne 5 && $1 -ne 8 ]] || usual=4
    echo "${queues_of_all:-$usual}"
}
declare -A server
# What each connection of a guest had by its own account, and what its workers counted.
negotiated() { # negotiated DOMAIN
    local counted
    jq -es --argjson queues "$(queues_of "$1")" --argjson pages "${pages[$1]}" --argjson segments "$segments" --argjson persistent "$persistent" \
        'all(.[]; .connection == {queues: $queues, ring_pages: $pages, segments: $segments, persistent: $persistent})
        and all(.[]; (.indirect_requests > 0) == ($segments > 11))' "$work/load-$1.json" >/dev/null ||
        { jq -c '[.connection, .indirect_requests]' "$work/load-$1.json" | sort | uniq -c; fail "guest $1 did not have what mode $mode has"; }
    counted=$(ctl stats "$1" xvda --json) || fail "the counters of guest $1"
    jq -e --argjson queues "$(queues_of "$1")" --argjson segments "$segments" --argjson persistent "$persistent" \
        '([.queues[] | select(.reqs_received > 0)] | length) == $queues and (.totals.indirect_requests > 0) == ($segments > 11)
        and (.totals.mapped_copies * 20 > .totals.grant_copy_operations) == $persistent' <<<"$counted" >/dev/null ||
        { jq -c '[.totals, (.queues | map(.reqs_received))]' <<<"$counted"; fail "the workers of guest $1 did not see what mode $mode has"; }
    jq -r --arg domain "$1" '.totals | "  guest \($domain): \(.indirect_requests) of \(.reqs_received) requests were indirect, " +
        "\(.mapped_copies) of \(.grant_copy_operations) copies in mapped pages"' <<<"$counted"
}
# Connects, writes, reads, reads all back and closes, again and again until told to stop. A good run is a line of JSON.
load() { # load DOMAIN RING-PAGES
    local seed=$((1000 * $1)) verify=(--bs "4k-$((segments > 32 ? segments * 4 : 128))k" --verify crc32c)
    [[ $1 -ne 1 && $1 -lt 4 ]] || verify=(--bs "512-$largest" --verify history)
    while [[ ! -e $work/stop ]]; do
        seed=$((seed + 1))
        xbb-blkfront load --dir "$xen" --domid "$1" --rw randrw "${verify[@]}" --depth 32 --queues "$(queues_of "$1")" "${guest_options[@]}" --ring-pages "$2" --time "$seconds_of_run" \
            --flush-every 16 --discard-every 50 --barrier-every 64 --pauses 10 --seed "$seed" \
            --timeout 60000 --json >>"$work/load-$1.json" 2>>"$work/load-$1.log" || return 1
    done
}
declare -A load
for domain in "${!images[@]}"; do
    domains+=("$domain")
    if [[ $mode == nbd ]]; then
        serve "$domain" >>"$work/servers.log" 2>&1
        sleep 0.5
    fi
    # Room for the pages of all slots; a frontend that has none goes on without indirect requests.
    xbb-loopback domain create --dir "$xen" --pages 262144 --grant-entries 262144 "$domain" >>"$work/loopback.log" || fail "domain $domain"
    ctl attach "$domain" xvda "${images[domain]}" >/dev/null || fail "attach ${images[domain]}"
    load "$domain" "${pages[domain]}" &
    load[$domain]=$!
done
for domain in "${domains[@]}"; do wait_for "the first worker of $domain" worker "$domain"; done
sleep 1
descriptors=$(find "/proc/$xbbd/fd" | wc -l)
done_kills=0
misled=0
readers=0
writers=0
programs=0
# xbbd has the open files of these guests.
kept=([1]=1 [2]=1)
both=0
upgrades=0
servers=0
revived=0
asking=
coproc locker { locks; }
RANDOM=${XBB_TEST_SEED:-$$}
started=$SECONDS
while [[ $done_kills -lt $kills ]]; do
    pause=$((RANDOM % (2 * between)))
    sleep "$((pause / 1000)).$(printf '%03d' $((pause % 1000)))"
    leave
    domain=${domains[RANDOM % ${#domains[@]}]}
    revive "$domain" || true
    kill -0 "${load[$domain]}" 2>/dev/null || break
    process=$(worker "$domain") || continue
    end=killed
    [[ $((RANDOM % 25)) -ne 0 ]] || end=both
    [[ $((RANDOM % 12)) -ne 0 ]] || end=upgraded
    [[ $mode != nbd || $((RANDOM % 6)) -ne 0 ]] || end=server
    if [[ $domain -eq 2 ]]; then
        mend
        [[ ${kept[2]} -eq 0 || $end == both || $((RANDOM % 2)) -eq 0 ]] || mislead
    fi
    [[ $domain -gt 2 || $((RANDOM % 2)) -eq 0 ]] || interfere "$domain" "$end"
    # The worker that follows leaves its open files with the xbbd that there is now.
    kept[domain]=1
    case $end in
    upgraded)
        change_build
        if ctl upgrade "$domain" xvda >>"$work/upgrade.log" 2>&1; then
            upgrades=$((upgrades + 1))
        elif ! revive "$domain"; then
            tail -3 "$work/upgrade.log"
            fail "upgrade of guest $domain"
        fi
        ;;
    server)
        restart_server "$domain"
        servers=$((servers + 1))
        ;;
    both)
        # Without a service manager nobody has the open files then, and the names count.
        mend
        kept=([1]=0 [2]=0)
        kill -KILL "$xbbd" "$process" 2>/dev/null
        wait "$xbbd" 2>/dev/null
        start_xbbd
        wait_for "an answer of xbbd" ctl list
        both=$((both + 1))
        ;;
    killed) kill -KILL "$process" 2>/dev/null || continue ;;
    esac
    [[ $end == upgraded || $end == server ]] || done_kills=$((done_kills + 1))
done
leave
seconds=$((SECONDS - started))
mend
touch "$work/stop"
good=true
for domain in "${domains[@]}"; do
    wait "${load[$domain]}" || { good=false; cat "$work/load-$domain.log"; }
done
echo "kill-test: mode $mode: $done_kills kills of workers in $seconds s, $both of them together with xbbd; $upgrades upgrades, $servers ends of servers and $revived of their own between them${builds[1]:+, from one build to the other}"
for domain in "${domains[@]}"; do
    jq -rs --arg domain "$domain" 'def all(f): [.[] | .read, .write, .flush, .barrier, .discard | f // 0] | add;
        "  guest \($domain): \(length) runs, \([.[] | select(.ok)] | length) of them good, \(all(.count)) operations, \(all(.errors)) errors, "
        + "\([.[].verified_blocks] | add) blocks verified\([.[].failure | values] | map(", " + .) | add // "")"' "$work/load-$domain.json"
done
jq -sr '[.[].pauses_ms[]] | sort | if length == 0 then "  no pause of 10 ms" else
    "  pauses of 10 ms or more: \(length), median \(.[length / 2 | floor]) ms, 95 %: \(.[length * 0.95 | floor]) ms, longest \(.[length - 1]) ms" end' \
    "$work"/load-*.json
echo "  processor: $(nproc) cores, load average $(cut -d' ' -f1-3 /proc/loadavg)"
replayed=$(grep -o 'with [0-9]* requests in flight' "$work/xbbd.log" | awk '{ n += $2 } END { print n + 0 }')
echo "  $replayed requests were done again; the image of guest 2 had another name, none or another file's $misled times"
echo "  beside workers that ended: $readers times a reader's lock, $writers times one that asked for a writer's, $programs times qemu-img or qemu-io"
$good || fail "a guest saw an error"
[[ $done_kills -eq $kills ]] || fail "a load ended early"
for domain in "${domains[@]}"; do negotiated "$domain"; done
now=$(find "/proc/$xbbd/fd" | wc -l)
# For each disk: a process that stands by, with its channel, and the program before an upgrade.
[[ $now -le $((descriptors + 2 + 3 * ${#domains[@]})) ]] || {
    find "/proc/$xbbd/fd" -type l -printf '  %l\n' | sed 's/:\[[0-9]*\]//' | sort | uniq -c
    fail "xbbd had $descriptors descriptors and has $now"
}
for domain in "${domains[@]}"; do ctl detach "$domain" xvda >/dev/null || fail "detach of guest $domain"; done
gone() { ! worker "$1"; }
for domain in "${domains[@]}"; do wait_for "the end of the worker of guest $domain" gone "$domain"; done
xbb-loopback domain list --dir "$xen" --json >"$work/domains.json"
jq -e 'all(.mapped == 0 and .copying == 0 and .grant_handles == 0 and .ports_bound == 0)' "$work/domains.json" >/dev/null ||
    { cat "$work/domains.json"; fail "something of a guest is still mapped or bound"; }
clean() { [[ -z $(find "$run" -name 'vbd-*') ]]; }
wait_for "the end of all files of disks" clean
# Clusters without an owner are found by a scan beside the guest's work, which a disk that is detached soon after a kill has not
# ended: the next worker finds them.
for ((round = 1; ; round++)); do
    [[ -n ${images[4]:-} ]] || break
    qemu-img check "$work/4.qcow2" >"$work/check.log" 2>&1 && break
    [[ $? -eq 3 && $round -lt 20 ]] || { cat "$work/check.log"; fail "qemu-img check of the image of guest 4"; }
    ctl attach 4 xvda "${images[4]}" >/dev/null || fail "attach ${images[4]} again"
    xbb-blkfront load --dir "$xen" --domid 4 --rw randwrite --depth 4 --time "$round" --json >/dev/null || fail "a load of guest 4"
    ctl detach 4 xvda >/dev/null || fail "detach of guest 4"
    wait_for "the end of the worker of guest 4" gone 4
done
[[ $(sha256sum <"$work/templates/4.img") == "$template" ]] || fail "the template of guest 4 was written to"
[[ -z ${images[4]:-} ]] || echo "  the image of guest 4: $(grep -m1 -i 'no errors' "$work/check.log")"
if [[ -n ${images[7]:-} ]]; then
    # Two readers that share nothing.
    Tests/VHDTools/vhd.py read "$work/7.libvhdi" "$work/7.vhd" || fail "libvhdi cannot read the image of guest 7"
    qemu-img convert -f vpc -O raw "$work/7.vhd" "$work/7.qemu" || fail "qemu-img cannot read the image of guest 7"
    cmp "$work/7.libvhdi" "$work/7.qemu" || fail "the image of guest 7 is read in two ways"
fi
echo "kill-test: ok"
exit 0
