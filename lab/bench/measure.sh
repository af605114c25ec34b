#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# In dom0: a guest whose disks are the same number of bytes of the same storage for each backend; fio in the guest goes over them in turn.
# The rows come from rows.py, one a line. Prints lines
# "RESULT PROCESSORS STORAGE PATTERN BLOCK DEPTH BACKEND ROUND IOPS OPERATIONS NANOSECONDS", the last being dom0's processor time.
# usage: measure.sh ROWS ROUNDS SECONDS
set -euo pipefail
rows=$1 rounds=$2 seconds=$3
. /host/lib/dom0.sh
bytes=$((128 << 20))
# Each random write of a short run meets a cluster that the overlay does not have yet, nearly always.
overlay_bytes=$((256 << 20))
trap '[[ $? -eq 0 ]] || tail -n 20 /var/log/xen/qemu-*.log /var/log/xbbd.log' EXIT

tar -C / -xf /host/peers.tar
# The package keeps modprobe from it.
modprobe xen-netback 2>/dev/null || true
# As many queues as the guest with four processors asks for, from each backend that has queues.
insmod "$(find /lib/modules -name 'xen-blkback.ko*')" max_queues=4
# As xen-blkback has backend/vbd, XBB takes the directory of which the kernel knows nothing.
mkdir -p "$images/templates"
# A worker has the settings that xbbd had when it started it, and outlives it; so a disk's settings are those of the xbbd that saw it first.
xbbd_with() { # whether pages stay mapped
    [[ -z $(pidof xbbd) ]] || xbbd_stop
    xbbd_start --backend vbd3 --max-queues 4 --backing-dir "$images/templates" --persistent-grants "$1"
}
xbbd_with off

## Storage

selected() { grep -q " $1 " "$rows"; } # storage
takes_turns() { grep -qE " $1 .* $2( |\$)" "$rows"; } # storage, backend

# Data without a hole and without zeroes, from a file that is there.
fill() { # file, bytes
    local size=0
    : >"$1"
    while ((size < $2)); do
        cat /srv/vmlinux >>"$1"
        size=$(stat -c %s "$1")
    done
    truncate -s "$2" "$1"
    sync "$1"
}

note "writing the storage"
if selected file; then
    for backend in blkback blkback-direct qdisk xbb xbb-mapped; do fill "$images/$backend.img" "$bytes"; done
    losetup -f --direct-io=on "$images/blkback-direct.img"
    direct_loop=$(losetup -n -O NAME -j "$images/blkback-direct.img")
fi
if selected device; then
    sfdisk -q "$raw_device" <<<"$(printf 'label: gpt\n'; for _ in 1 2 3 4; do printf 'size=%sM\n' $((bytes >> 20)); done)"
    await 30 "the partitions" test -b "${raw_device}4"
    dd if=/dev/zero of="$raw_device" bs=1M seek=1 count=$((bytes * 4 >> 20)) conv=fsync 2>/dev/null
fi
if selected qcow2; then
    qemu-img create -q -f qcow2 -o preallocation=full "$images/filled.qcow2" "$bytes"
fi
if selected overlay; then
    fill "$images/templates/base.img" "$overlay_bytes"
fi

## Disks

xen_phy() { echo "format=raw,vdev=$1,access=rw,backendtype=phy,target=$2"; }
qemu_disk() { echo "format=$3,vdev=$1,access=rw,backendtype=qdisk,target=$2"; }

# Of storages that all backends have at once, the device in the guest; a disk of a QCOW image comes for each measurement anew.
declare -A devices
guest_with_disks() { # processors
    local disks=()
    # So that QEMU runs, also where nothing but QCOW images is measured.
    truncate -s 1M "$images/small.img"
    disks+=("$(qemu_disk xvdi "$images/small.img" raw)")
    if selected file; then
        disks+=("$(xen_phy xvda "$images/blkback.img")" "$(xen_phy xvdb "$direct_loop")" "$(qemu_disk xvdc "$images/qdisk.img" raw)")
        devices[file:blkback]=xvda devices[file:blkback-direct]=xvdb devices[file:qdisk]=xvdc devices[file:xbb]=xvdd
        devices[file:xbb-mapped]=xvdj
    fi
    if selected device; then
        disks+=("$(xen_phy xvde "${raw_device}1")" "$(qemu_disk xvdf "${raw_device}2" raw)")
        devices[device:blkback]=xvde devices[device:qdisk]=xvdf devices[device:xbb]=xvdg
        devices[device:xbb-mapped]=xvdk
    fi
    guest_memory=512 guest_processors=$1 guest_extra="xen_blkfront.max_queues=4" guest_create bench "${disks[@]}"
    domain=$(domid bench)
    log=$consoles/guest-bench.log
    ! selected file || xbbctl attach "$domain" xvdd "raw:$images/xbb.img" --kind vbd3
    ! selected device || xbbctl attach "$domain" xvdg "raw:${raw_device}3" --kind vbd3
    if takes_turns file xbb-mapped || takes_turns device xbb-mapped; then
        xbbd_with on
        ! selected file || xbbctl attach "$domain" xvdj "raw:$images/xbb-mapped.img" --kind vbd3
        ! selected device || xbbctl attach "$domain" xvdk "raw:${raw_device}4" --kind vbd3
        xbbd_with off
    else
        unset 'devices[file:xbb-mapped]' 'devices[device:xbb-mapped]'
    fi
    xenstore-ls -f /local/domain/0/backend | grep -E '/(state|mode|params|physical-device|type|multi-queue-max-queues) = '
    losetup -l
    for device in "${devices[@]}"; do disk_in_guest "$device" "$bytes"; done
    guest bench 'for disk in /sys/block/xvd*; do echo "${disk##*/}: $(ls $disk/mq | wc -l) queues, requests of $(cat $disk/queue/max_sectors_kb) KiB"; done
        dmesg | grep blkfront'
    xbbctl list
}
disk_in_guest() { # device, bytes
    guest bench "i=0; until [ \"\$(blockdev --getsize64 /dev/$1 2>/dev/null)\" = $2 ]; do i=\$((i + 1)); [ \$i -lt 300 ] || exit 1; sleep 0.2; done" ||
        fail "$1 is not in the guest"
}

qcow_attach() { # storage, backend
    local image=$images/filled.qcow2 size=$bytes
    if [[ $1 == overlay ]]; then
        image=$images/overlay.qcow2 size=$overlay_bytes
        rm -f "$image"
        qemu-img create -q -f qcow2 -b "$images/templates/base.img" -F raw "$image"
        sync "$image"
    fi
    case $2 in
    qdisk) xl block-attach bench "$(qemu_disk xvdh "$image" qcow2)" ;;
    xbb) xbbctl attach "$domain" xvdh "qcow2:$image" --kind vbd3 ;;
    esac
    disk_in_guest xvdh "$size"
}
qcow_detach() { # backend
    case $1 in
    qdisk) xl block-detach bench xvdh ;;
    xbb) xbbctl detach "$domain" xvdh --kind vbd3 ;;
    esac
    await 60 "the end of the disk" eval "! xenstore-exists /local/domain/$domain/device/vbd/51824/state"
}

## Measuring

# Runs a script in the guest as `guest` does, but no process in dom0 meanwhile; what it prints goes to `answer`, and dom0's processor time
# in nanoseconds to `spent`.
measured() { # script
    local job=m$RANDOM-$((++jobs_run)) tty text line="" part before end=$((SECONDS + 600))
    tty=$(xenstore-read "/local/domain/$domain/console/tty")
    text=$(printf '%s' "$1" | base64 -w 0)
    answer=""
    exec 7<"$log"
    while read -r _ <&7; do :; done
    before=$(/host/bin/domain-time 0)
    printf '%s %s\n' "$job" "$text" >"$tty"
    while ((SECONDS < end)); do
        if read -r part <&7; then
            line=${line}${part%$'\r'}
            case $line in
            "$job| "*) answer+=${line#"$job| "}$'\n' ;;
            "$job= 0") break ;;
            "$job= "*) fail "in the guest: $answer" ;;
            esac
            line=""
        else
            line+=$part
            read -rt 0.5 -u 8 || true
        fi
    done
    spent=$(($(/host/bin/domain-time 0) - before))
    exec 7<&-
    [[ $line == "$job= 0" ]] || fail "fio did not end"
}

# Prints IOPS, and how many operations there were from the device's first one.
fio_job() { # device, pattern, block, depth, processors
    local jobs=$5 part pattern=$2 size=$3
    ((jobs <= $4)) || jobs=$4
    part=$((100 / jobs))
    [[ $2 != mixed ]] || pattern="randrw --rwmixread=70"
    case $size in
    *k) size=$((${size%k} << 10)) ;;
    *M) size=$((${size%M} << 20)) ;;
    esac
    local region="--size=100%"
    # Each job of a sequential pattern has a part of the disk.
    [[ $pattern == rand* || $jobs -eq 1 ]] || region="--size=$part% --offset_increment=$part%"
    echo "sectors() { read -r _ _ r _ _ _ w _ </sys/block/$1/stat; echo \$((r + w)); }
        before=\$(sectors)
        result=\$(fio --name=bench --filename=/dev/$1 --rw=$pattern --bs=$3 --numjobs=$jobs --iodepth=$(($4 / jobs)) $region --direct=1 \
            --group_reporting --ioengine=libaio --time_based --runtime=$seconds --ramp_time=1 --norandommap --randrepeat=0 --minimal 2>&1) ||
            { echo \"\$result\"; exit 1; }
        IFS=';' read -ra fields <<<\"\$(tail -1 <<<\"\$result\")\"
        echo \$((fields[7] + fields[48])) \$(((\$(sectors) - before) * 512 / $size))"
}

measure_row() { # round, processors, storage, pattern, block, depth, backend
    local device=${devices[$3:$7]:-xvdh}
    [[ $device != xvdh ]] || qcow_attach "$3" "$7"
    measured "$(fio_job "$device" "$4" "$5" "$6" "$2")"
    read -r iops operations <<<"$answer"
    echo "RESULT $2 $3 $4 $5 $6 $7 $1 $iops $operations $((spent > idle ? spent - idle : 0))"
    [[ $device != xvdh ]] || qcow_detach "$7"
}

while read -r -u 6 processors; do
    guest_with_disks "$processors"
    # What dom0 does while it waits, which is taken off.
    measured "sleep $((seconds + 1)); echo"
    idle=$spent
    note "measuring; dom0 takes $((idle / 1000000)) ms when idle"
    for ((round = 1; round <= rounds; round++)); do
        while read -r -u 9 _ storage pattern block depth backends; do
            # shellcheck disable=SC2206  # words are meant
            turns=($backends)
            # Each round begins with another backend.
            for ((i = 0; i < ${#turns[@]}; i++)); do
                measure_row "$round" "$processors" "$storage" "$pattern" "$block" "$depth" "${turns[(i + round) % ${#turns[@]}]}"
            done
        done 9< <(grep "^$processors " "$rows")
    done
    xbbctl list
    # xl knows nothing of the directory vbd3.
    for name in "${!devices[@]}"; do
        [[ $name != *:xbb* ]] || xbbctl detach "$domain" "${devices[$name]}" --kind vbd3
    done
    guest_shutdown bench
done 6< <(cut -d' ' -f1 "$rows" | sort -nu)
! selected qcow2 || qemu-img check "$images/filled.qcow2"
