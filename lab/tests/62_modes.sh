# SPDX-License-Identifier: BSD-2-Clause
# All that a guest does with a disk, in each way of lab/lib/modes.sh and with both of Debian 12's kernels: GRUB's own frontend reads kernel and
# initramfs from it, it has the root file system, fio verifies, files are written and checked (fsck), what is trimmed comes back, both disks
# grow, and the guest is saved and restored in the middle of I/O. XEN_LAB_MODE and XEN_LAB_KERNEL (6.1, 6.12) choose; without them all.
# limit: 7200
# needs: kernel-6.12
. /host/lib/modes.sh
cp /host/boot/vmlinux-6.12 /host/boot/guest-6.12.cpio /srv/

template() { # kernel
    local suffix=${1#6.1} root=/srv/root
    mkdir -p "$root"
    (cd "$root" && cpio -idm --quiet <"../guest${suffix:+-6.12}.cpio")
    mkdir -p "$root/boot/grub"
    cp "/srv/vmlinux${suffix:+-6.12}" "$root/boot/vmlinux"
    cp "/srv/guest${suffix:+-6.12}.cpio" "$root/boot/guest.cpio"
    cat >"$root/boot/grub/grub.cfg" <<END
linux /boot/vmlinux $guest_kernel_line root=/dev/xvda rw xen_blkfront.max_queues=4 xen_blkfront.max_indirect_segments=256
initrd /boot/guest.cpio
boot
END
    rm -f "$images/template.img"
    truncate -s 448M "$images/template.img"
    mke2fs -q -t ext4 -d "$root" "$images/template.img"
    rm -rf "$root"
}

verified() {
    guest many "fio --name=all --filename=/dev/xvdb --rw=randwrite --size=16M --iodepth=8 --direct=1 --ioengine=libaio --fdatasync=32 \
        --verify=crc32c --verify_fatal=1 $mode_load --minimal >/tmp/fio 2>&1 || { cat /tmp/fio; exit 1; }" 600 || fail "fio"
}

files() {
    guest many 'set -e
        mke2fs -q -t ext4 /dev/xvdb; mount -t ext4 /dev/xvdb /mnt
        cp -a /bin /sbin /lib /usr /mnt/; sync; echo 3 >/proc/sys/vm/drop_caches
        cd /mnt; find . -type f | sort | xargs md5sum >/sums; cd /
        umount /mnt; e2fsck -fn /dev/xvdb; mount -t ext4 /dev/xvdb /mnt
        (cd /mnt && md5sum -c /sums >/tmp/checked) || { grep -v OK /tmp/checked; exit 1; }' 300 || fail "files"
}

trimmed() {
    local full left
    full=$(stat -c %b "$images/a.img")
    guest many 'set -e; rm -rf /mnt/*; sync; fstrim -v /mnt; umount /mnt; e2fsck -fn /dev/xvdb' || fail "fstrim"
    left=$(stat -c %b "$images/a.img")
    [[ $left -lt $((full / 2)) ]] || fail "fstrim gave nothing back: $full blocks, then $left"
}

grown() { # disk, MiB
    xbbctl resize "$domain" "$1" "$2M"
    await 60 "the new size of $1" eval "[[ \$(guest many 'blockdev --getsize64 /dev/$1') == $(($2 << 20)) ]]"
    guest many "dd if=/dev/urandom of=/tmp/end bs=1M count=1 && dd if=/tmp/end of=/dev/$1 bs=1M seek=$(($2 - 1)) oflag=direct &&
        dd if=/dev/$1 bs=1M skip=$(($2 - 1)) iflag=direct | cmp - /tmp/end" || fail "the end of $1, which grew"
}

saved_and_restored() {
    guest_fio_start many xvdb "$mode_load"
    xl save many "$images/saved"
    await 60 "the workers' end" eval '[[ $(workers) -eq 0 && $(vbd_nodes) -eq 0 ]]'
    xl restore "$images/saved"
    rm -f "$images/saved"
    domain=$(domid many)
    await 120 "I/O after the restore" completed_more many xvdb 20
    guest_fio_end many xvdb
}

# What follows the name is done; a line for each.
did() { # words
    note "kernel $kernel, mode $mode: $*"
}

for kernel in ${XEN_LAB_KERNEL:-6.1 6.12}; do
    template "$kernel"
    for mode in ${XEN_LAB_MODE:-$all_modes}; do
        set_mode "$mode"
        xbbd_stop
        xbbd_start "${mode_options[@]}"
        cp --sparse=always "$images/template.img" "$images/root.img"
        rm -f "$images/a.img"
        truncate -s 128M "$images/a.img"
        guest_memory=$mode_memory guest_processors=$mode_processors guest_kernel=/usr/lib/grub-xen/grub-x86_64-xen.bin guest_ramdisk="" \
            guest_create many "$(disk xvda "raw:$images/root.img")" "$(disk xvdb "raw:$images/a.img")"
        domain=$(domid many)
        guest many "grep -q '^/dev/xvda / ext4 rw' /proc/mounts && uname -r | grep '^${kernel/./\\.}\\.'" || fail "another kernel or root file system"
        for disk in xvda xvdb; do assert_mode many "$disk"; done
        did "GRUB, kernel and root file system"
        verified
        did "fio --verify"
        files
        did "files, fsck"
        trimmed
        did "fstrim"
        grown xvdb 192
        grown xvda 512
        did "growth"
        saved_and_restored
        for disk in xvda xvdb; do assert_mode many "$disk"; done
        did "save and restore"
        guest many 'dmesg | grep -iE "I/O error|xvd.*error|EXT4-fs error"' && fail "the guest's kernel saw errors"
        guest_shutdown many
        assert_nothing_left
        # It was not unmounted: the journal is played first.
        e2fsck -fp "$images/root.img" || [[ $? -eq 1 ]]
        e2fsck -fn "$images/root.img"
        did "clean"
    done
done
rm -f /srv/vmlinux-6.12 /srv/guest-6.12.cpio
xbbd_stop
xbbd_start
