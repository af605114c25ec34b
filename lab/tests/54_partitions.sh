# SPDX-License-Identifier: BSD-2-Clause
# A partition table that the guest writes is seen by guest and dom0; a disk can also be given as a partition.
truncate -s 64M "$images"/{a,b}.img
guest_create part "$(disk xvda "raw:$images/a.img")" "$(disk xvdb2 "raw:$images/b.img")"
guest part 'set -e
    printf "label: gpt\nsize=16M\nsize=32M\n" | sfdisk -q /dev/xvda
    for i in $(seq 100); do [ -b /dev/xvda2 ] && break; sleep 0.2; done
    test "$(blockdev --getsize64 /dev/xvda2)" = 33554432
    test "$(blockdev --getsize64 /dev/xvdb2)" = 67108864
    mke2fs -q -t ext4 /dev/xvda2
    mke2fs -q -t ext4 /dev/xvdb2'
guest_shutdown part
[[ $(sfdisk -J "$images/a.img" | jq -c '[.partitiontable.partitions[].size]') == '[32768,65536]' ]] ||
    fail "dom0 sees another table: $(sfdisk -d "$images/a.img")"
e2fsck -fn "$images/b.img"
