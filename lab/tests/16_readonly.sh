# SPDX-License-Identifier: BSD-2-Clause
# A disk with access=ro: the guest sees that it is read-only, mounts it, and cannot change it.
mkdir -p /srv/tree
echo "kept" >/srv/tree/file
truncate -s 32M "$images/ro.img"
mke2fs -q -t ext4 -d /srv/tree "$images/ro.img"
before=$(md5sum <"$images/ro.img")
guest_create ro "$(disk xvda "raw:$images/ro.img" ro)"
guest ro 'set -e
    test "$(blockdev --getro /dev/xvda)" = 1
    mount -t ext4 -o ro /dev/xvda /mnt
    test "$(cat /mnt/file)" = kept
    umount /mnt
    ! dd if=/dev/zero of=/dev/xvda bs=4k count=1 oflag=direct
    ! mount -t ext4 -o rw /dev/xvda /mnt || ! touch /mnt/new'
guest_shutdown ro
[[ $(md5sum <"$images/ro.img") == "$before" ]] || fail "the image changed"
