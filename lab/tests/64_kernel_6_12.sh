# SPDX-License-Identifier: BSD-2-Clause
# A guest with kernel 6.12, which Debian 12 has beside its own 6.1: fio verifies an image and a block device, files are written and checked, and
# what is trimmed comes back.
# limit: 1800
# needs: kernel-6.12
cp /host/boot/vmlinux-6.12 /host/boot/guest-6.12.cpio /srv/
truncate -s 256M "$images/a.img"
guest_kernel=/srv/vmlinux-6.12 guest_ramdisk=/srv/guest-6.12.cpio guest_memory=384 guest_processors=2 \
    guest_create later "$(disk xvda "raw:$images/a.img")" "$(disk xvdb "raw:$raw_device")"
guest later 'uname -r; dmesg | grep blkfront'
guest later 'uname -r | grep "^6\.12\."' || fail "another kernel runs"
for disk in xvda xvdb; do
    guest later "fio --name=$disk --filename=/dev/$disk --rw=randwrite --bsrange=4k-1M --size=64M --direct=1 --ioengine=libaio \
        --iodepth=16 --fdatasync=16 --verify=crc32c --verify_fatal=1 --minimal >/tmp/$disk.fio 2>&1 ||
        { cat /tmp/$disk.fio; exit 1; }" 600 || fail "fio on $disk"
done
guest later 'set -e
    mke2fs -q -t ext4 /dev/xvda; mount -t ext4 /dev/xvda /mnt
    cp -a /bin /sbin /lib /usr /init /mnt/; sync; echo 3 >/proc/sys/vm/drop_caches
    cd /mnt; find . -type f | sort | xargs md5sum >/tmp/sums; cd /
    umount /mnt; e2fsck -fn /dev/xvda; mount -t ext4 /dev/xvda /mnt
    (cd /mnt && md5sum -c /tmp/sums >/tmp/checked) || { grep -v OK /tmp/checked; exit 1; }' 300 || fail "files"
full=$(stat -c %b "$images/a.img")
guest later 'set -e; rm -rf /mnt/*; sync; fstrim -v /mnt; umount /mnt; e2fsck -fn /dev/xvda' || fail "fstrim"
[[ $(stat -c %b "$images/a.img") -lt $((full / 2)) ]] || fail "fstrim gave nothing back: $full, then $(stat -c %b "$images/a.img") blocks"
guest later 'dmesg | grep -iE "I/O error|xvd.*error"' && fail "the guest's kernel saw errors"
guest_shutdown later
rm -f /srv/vmlinux-6.12 /srv/guest-6.12.cpio
