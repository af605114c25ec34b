# SPDX-License-Identifier: BSD-2-Clause
# A guest whose root file system is on a disk of ours: on an image and on a block device.
# limit: 900
mkdir -p /srv/root
(cd /srv/root && cpio -idm --quiet <../guest.cpio)
truncate -s 128M "$images/root.img"
mke2fs -q -t ext4 -d /srv/root "$images/root.img"
dd if="$images/root.img" of="$raw_device" bs=1M conv=fsync 2>/dev/null
for target in "$images/root.img" "$raw_device"; do
    guest_extra="root=/dev/xvda rw" guest_create root "$(disk xvda "raw:$target")"
    guest root 'set -e
        grep -q "^/dev/xvda / ext4 rw" /proc/mounts
        md5sum /bin/busybox >/sum; sync; echo 3 >/proc/sys/vm/drop_caches; md5sum -c /sum' || fail "root on $target"
    guest_shutdown root
    assert_nothing_left
    e2fsck -fn "$target"
done
rm -rf /srv/root
