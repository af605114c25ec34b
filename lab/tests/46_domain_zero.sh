# SPDX-License-Identifier: BSD-2-Clause
# A disk for dom0 itself, as libxl attaches it for pygrub and an administrator for a look into an image.
modprobe xen-blkfront
truncate -s 64M "$images/zero.img"
xl block-attach 0 "$(disk xvdz "raw:$images/zero.img")"
await 60 "/dev/xvdz" eval '[[ $(blockdev --getsize64 /dev/xvdz) -eq 67108864 ]]'
mke2fs -q -t ext4 /dev/xvdz
mkdir -p /srv/zero
mount -t ext4 /dev/xvdz /srv/zero
cp /bin/bash /srv/zero/
cmp /bin/bash /srv/zero/bash
umount /srv/zero
xl block-detach 0 xvdz
await 60 "the end of /dev/xvdz" eval '[[ ! -e /dev/xvdz && $(workers) -eq 0 ]]'
e2fsck -fn "$images/zero.img"
rmdir /srv/zero
