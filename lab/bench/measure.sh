#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# In dom0: one guest with six disks, the same number of bytes of the same storage for each of three backends, as an image
# and as a block device; fio in the guest goes over them in turn. Prints "ROUND ROW STORAGE BACKEND IOPS".
# usage: measure.sh ROUNDS SECONDS
set -euo pipefail
rounds=$1 seconds=$2
. /host/lib/dom0.sh
bytes=$((128 << 20))
trap '[[ $? -eq 0 ]] || tail -n 20 /var/log/xen/qemu-*.log /var/log/xbbd.log' EXIT

tar -C / -xf /host/peers.tar
# The package keeps modprobe from it.
modprobe xen-netback 2>/dev/null || true
insmod "$(find /lib/modules -name 'xen-blkback.ko*')"
# As xen-blkback has backend/vbd, XBB takes the directory of which the kernel knows nothing.
xbbd_start --backend vbd3

note "writing the storage"
for backend in blkback qdisk xbb; do
    dd if=/dev/zero of="$images/$backend.img" bs=1M count=$((bytes >> 20)) conv=fsync 2>/dev/null
done
sfdisk -q "$raw_device" <<<"$(printf 'label: gpt\n'; printf 'size=%sM\n' $((bytes >> 20)) $((bytes >> 20)) $((bytes >> 20)))"
await 30 "the partitions" test -b "${raw_device}3"
dd if=/dev/zero of="$raw_device" bs=1M seek=1 count=$((bytes * 3 >> 20)) conv=fsync 2>/dev/null

xen_phy() { echo "format=raw,vdev=$1,access=rw,backendtype=phy,target=$2"; }
qemu_disk() { echo "format=raw,vdev=$1,access=rw,backendtype=qdisk,target=$2"; }
guest_memory=512 guest_create bench \
    "$(xen_phy xvda "$images/blkback.img")" "$(qemu_disk xvdb "$images/qdisk.img")" \
    "$(xen_phy xvdd "${raw_device}1")" "$(qemu_disk xvde "${raw_device}2")"
xbbctl attach "$(domid bench)" xvdc "raw:$images/xbb.img" --kind vbd3
xbbctl attach "$(domid bench)" xvdf "raw:${raw_device}3" --kind vbd3
xenstore-ls -f /local/domain/0/backend | grep -E '/(state|mode|params|physical-device|type) = '
losetup -a
for disk in a b c d e f; do
    [[ $(guest bench "blockdev --getsize64 /dev/xvd$disk") -eq $bytes ]] || fail "xvd$disk has another size"
done
xbbctl list
note "measuring"
# Each round begins with another backend.
guest_start bench fio "
    disks='file:blkback:xvda file:qdisk:xvdb file:xbb:xvdc device:blkback:xvdd device:qdisk:xvde device:xbb:xvdf'
    for round in \$(seq $rounds); do
        for row in randread:4k:32 randwrite:4k:32 read:256k:8 write:256k:8; do
            for disk in \$disks; do
                IFS=: read -r storage backend device <<<\$disk
                IFS=: read -r pattern size depth <<<\$row
                result=\$(fio --name=bench --filename=/dev/\$device --rw=\$pattern --bs=\$size --iodepth=\$depth --direct=1 \
                    --ioengine=libaio --time_based --runtime=$seconds --ramp_time=1 --norandommap --randrepeat=0 --minimal) || exit
                field=8
                [[ \$pattern != *write ]] || field=49
                echo \"\$round \$row \$storage \$backend \$(echo \"\$result\" | tail -1 | cut -d';' -f\$field)\"
            done
        done
        set -- \$disks
        first=\$1
        shift
        disks=\"\$* \$first\"
    done"
guest_wait bench fio $((600 + rounds * 24 * (seconds + 1) * 10))
xbbctl list
guest_shutdown bench
