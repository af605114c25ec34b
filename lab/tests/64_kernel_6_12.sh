# SPDX-License-Identifier: BSD-2-Clause
# A guest with kernel 6.12, which Debian 12 has beside its own 6.1: fio verifies an image and a block device, files are written and checked, and
# what is trimmed comes back, and both a raw and a qcow2 image grow under the guest's eyes.
# limit: 1800
# needs: kernel-6.12 peers
cp /host/boot/vmlinux-6.12 /host/boot/guest-6.12.cpio /srv/
tar -C / -xf /host/peers.tar
truncate -s 256M "$images/a.img"
qemu-img create -q -f qcow2 "$images/c.qcow2" 64M
guest_kernel=/srv/vmlinux-6.12 guest_ramdisk=/srv/guest-6.12.cpio guest_memory=384 guest_processors=2 \
    guest_create later "$(disk xvda "raw:$images/a.img")" "$(disk xvdb "raw:$raw_device")" \
    "$(disk xvdc "qcow2:$images/c.qcow2")"
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
for step in "xvda 320" "xvdc 96"; do
    read -r disk size <<<"$step"
    xbbctl resize "$(domid later)" "$disk" "${size}M"
    await 60 "the new size of $disk" eval "guest later '[ \$(blockdev --getsize64 /dev/$disk) -eq $((size << 20)) ]'"
    guest later "dd if=/dev/urandom of=/tmp/end bs=1M count=1 && dd if=/tmp/end of=/dev/$disk bs=1M seek=$((size - 1)) oflag=direct &&
        dd if=/dev/$disk bs=1M skip=$((size - 1)) iflag=direct | cmp - /tmp/end" || fail "the end of $disk, which grew"
done
guest later 'dmesg | grep -iE "I/O error|xvd.*error"' && fail "the guest's kernel saw errors"
guest_shutdown later
assert_nothing_left
qemu-img check "$images/c.qcow2" || fail "qemu-img check"
rm -f /srv/vmlinux-6.12 /srv/guest-6.12.cpio
