# SPDX-License-Identifier: BSD-2-Clause
# mkfs, mount, copy a tree, umount and e2fsck in a guest; dom0 finds the same files in the image.
truncate -s 256M "$images/fs.img"
guest_create fs "$(disk xvda "raw:$images/fs.img")"
guest fs 'set -e
    mke2fs -q -t ext4 /dev/xvda
    mount -t ext4 /dev/xvda /mnt
    cp -a /bin /sbin /lib /usr /init /mnt/
    umount /mnt
    e2fsck -fn /dev/xvda
    mount -t ext4 -o ro /dev/xvda /mnt
    cd /mnt && find . -type f | sort | xargs md5sum >/tmp/sums
    cd / && umount /mnt' 300
guest fs 'cat /tmp/sums' >/srv/sums
note "$(wc -l </srv/sums) files are written"
[[ $(wc -l </srv/sums) -gt 50 ]] || fail "the guest copied next to nothing"
guest_shutdown fs
await 30 "the worker's end" eval '[[ $(workers) -eq 0 ]]'

e2fsck -fn "$images/fs.img"
mkdir -p /mnt/fs
mount -t ext4 -o loop,ro "$images/fs.img" /mnt/fs
(cd /mnt/fs && md5sum -c /srv/sums >/srv/checked) || fail "$(grep -v ': OK' /srv/checked)"
umount /mnt/fs
