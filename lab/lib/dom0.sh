# SPDX-License-Identifier: BSD-2-Clause
# What a test says in dom0; sourced by run-test.sh. Every wait has a limit.
# shellcheck shell=bash
images=/srv/disk
consoles=/var/log/xen/console
raw_device=/dev/vda

# For waits without a process: each costs an emulated machine some 0.1 s.
exec 8<> <(:)

note() { printf '%s\n' "$(cut -d' ' -f1 /proc/uptime): $*"; }
fail() {
    note "FAILED: $*"
    exit 1
}

# Waits until a command succeeds.
await() { # seconds, what, command...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "waited too long for $what"
        read -rt 0.2 -u 8 || true
    done
}

# A command that has to fail; its output goes to `refusal`.
refuses() { # command...
    if refusal=$("$@" 2>&1); then
        fail "'$*' succeeded"
    fi
}

## xbbd

xbbd_start() { # options...
    [[ -z $(pidof xbbd) ]] || fail "xbbd runs already"
    mkdir -p /run/xbb
    setsid xbbd "$@" >>/var/log/xbbd.log 2>&1 </dev/null 8<&- &
    await 30 "xbbd's socket" xbbctl list
}

xbbd_stop() {
    local pid
    pid=$(pidof xbbd)
    kill -TERM "$pid"
    await 30 "the end of xbbd" eval "! kill -0 $pid"
}

# Processes that serve disks, or are about to; not those that only stand by.
worker_pids() { grep -lx xbb-vbd /proc/[0-9]*/comm 2>/dev/null | cut -d / -f 3 | xargs; }
workers() { worker_pids | wc -w; }
# The process that the lock of a disk names; asked for a hundred times, so without a process of its own.
pid_of() { # domain, device
    local pid
    read -r pid _ 2>/dev/null <"/run/xbb/vbd-vbd-$1-$2.lock" && [[ -e /proc/$pid/exe ]] && echo "$pid"
}
another_worker() { # domain, device, the one before, which may end between two looks
    local pid
    pid=$(pid_of "$1" "$2") && [[ $pid != "$3" ]]
}

## Guests

guest_kernel_line="console=hvc0 quiet panic=-1 mitigations=off cryptomgr.notests rodata=off"

domid() { xl domid "$1" 2>/dev/null; }

# The configuration of a disk that XBB serves.
disk() { # vdev, FORMAT:/PATH, [ro]
    echo "format=raw,vdev=$1,access=${3:-rw},script=block-xbb,target=$2"
}

# Creates a guest with our kernel and initramfs and waits until it takes commands.
guest_create() { # name, disk...
    guest_config "$@"
    guest_up "$1"
}

# Writes /srv/NAME.cfg; `guest_extra` is added to the kernel's command line, `guest_lines` to the file. Other variables name
# another type, kernel, ramdisk, memory in MiB or number of processors; an empty ramdisk is none.
guest_config() { # name, disk...
    local name=$1 disk list="" ramdisk=${guest_ramdisk-/srv/guest.cpio}
    shift
    for disk; do
        list+="'$disk',"
    done
    cat >"/srv/$name.cfg" <<END
name = "$name"
type = "${guest_type:-pv}"
kernel = "${guest_kernel:-/srv/vmlinux}"
${ramdisk:+ramdisk = \"$ramdisk\"}
memory = ${guest_memory:-256}
vcpus = ${guest_processors:-1}
# Else Xen emulates each look at the clock, as the emulated CPU promises no constant one.
tsc_mode = "native"
extra = "$guest_kernel_line ${guest_extra:-}"
on_crash = "destroy"
disk = [ $list ]
${guest_lines:-}
END
    mkdir -p "$consoles"
    : >"$consoles/guest-$name.log"
}

guest_up() { # name
    note "xl create $1"
    xl create -q "/srv/$1.cfg" || fail "xl create $1"
    guest_ready "$1"
}

# Waits until a guest that was created takes commands.
guest_ready() { # name
    note "guest $1 is built"
    await 300 "guest $1" grep -q '^ready= 0' "$consoles/guest-$1.log"
    note "guest $1 is domain $(domid "$1")"
}

# Starts a shell script in a guest, beside what runs there.
guest_start() { # guest, name of the job, script
    local tty
    tty=$(xenstore-read "/local/domain/$(domid "$1")/console/tty") || fail "guest $1 has no console"
    printf '%s %s\n' "$2" "$(printf '%s' "$3" | base64 -w 0)" >"$tty"
}

# Waits for a job of a guest; prints what it printed and returns its status.
guest_wait() { # guest, name of the job, seconds
    local log=$consoles/guest-$1.log
    await "$3" "job $2 of guest $1" grep -aq "^$2= " "$log"
    tr -d '\r' <"$log" | sed -n "s/^$2| //p"
    return "$(tr -d '\r' <"$log" | sed -n "s/^$2= //p" | tail -1)"
}

# Runs a shell script in a guest to its end.
jobs_run=0
guest() { # guest, script, [seconds]
    jobs_run=$((jobs_run + 1))
    local job=j$$-$jobs_run-$RANDOM
    guest_start "$1" "$job" "$2"
    guest_wait "$1" "$job" "${3:-120}"
}

# fio writes, reads and verifies a part of a disk again and again, until guest_fio_end or an error.
guest_fio_start() { # guest, disk, [another option of fio]
    guest_start "$1" "fio-$2" "rm -f /tmp/stop-$2; while [ ! -e /tmp/stop-$2 ]; do
        fio --name=$2 --filename=/dev/$2 --rw=randwrite --bsrange=4k-64k --size=8M --direct=1 --ioengine=libaio \
            --iodepth=8 --fdatasync=32 --verify=crc32c --verify_fatal=1 ${3:-} --minimal >/tmp/$2.fio 2>&1 ||
            { cat /tmp/$2.fio; exit 1; }; done"
    await 120 "I/O on $2 of $1" completed_more "$1" "$2" 20
}

guest_fio_end() { # guest, disk
    guest "$1" "touch /tmp/stop-$2"
    guest_wait "$1" "fio-$2" 300 || fail "fio on $2 of $1"
}

# How many requests XBB has completed.
completed() { xbbctl stats "$(domid "$1")" "$2" --json | jq .totals.reqs_completed; } # guest, disk
completed_more() { [[ $(completed "$1" "$2") -gt $3 ]]; } # guest, disk, number

guest_shutdown() { # guest
    xl shutdown "$1" >/dev/null || fail "xl shutdown $1"
    await 120 "the end of guest $1" eval "! xl domid $1"
}

## What is left

vbd_nodes() { xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep -cE '^/local/domain/0/backend/(vbd|vbd3|qdisk)/[0-9]+/[0-9]+ ='; }
descriptors() { find "/proc/$(pidof xbbd || echo none)/fd" -mindepth 1 2>/dev/null | wc -l; }
ports() { /usr/lib/xen-4.17/bin/lsevtchn 0 2>/dev/null | wc -l; }

nothing_left() {
    [[ $(xl list | wc -l) -eq 2 && -z $(pidof xbb-vbd) && $(vbd_nodes) -eq 0 && $(ports) -le $ports_before &&
        $(descriptors) -le $descriptors_before ]]
}

# Ends whatever guests there are, then asks for what each of them must have given back.
assert_nothing_left() {
    local end=$((SECONDS + 30))
    until nothing_left; do
        if ((SECONDS > end)); then
            xl list
            xenstore-ls -f /local/domain/0/backend || true
            fail "left: $(pidof xbb-vbd | wc -w) workers, $(vbd_nodes) nodes, $(ports) ports (before: $ports_before)," \
                "$(descriptors) descriptors of xbbd (before: $descriptors_before), $(($(xl list | wc -l) - 2)) domains"
        fi
        read -rt 0.3 -u 8 || true
    done
}
