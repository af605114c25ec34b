# SPDX-License-Identifier: BSD-2-Clause
# A guest whose root file system is on a disk of ours, in every way of lab/lib/profiles.
# limit: 2400
# What the package's unit says, and the directory of disks without a script.
xbbd_stop
xbbd_start --any-script --backend vbd --backend qdisk
mkdir -p /srv/root
(cd /srv/root && cpio -idm --quiet <../guest.cpio)
mkdir -p /srv/root/boot/grub
ln /srv/vmlinux /srv/guest.cpio /srv/root/boot/ 2>/dev/null || cp /srv/vmlinux /srv/guest.cpio /srv/root/boot/
cat >/srv/root/boot/grub/grub.cfg <<END
linux /boot/vmlinux $guest_kernel_line root=/dev/xvda rw
initrd /boot/guest.cpio
boot
END
truncate -s 384M "$images/root.img"
mke2fs -q -t ext4 -d /srv/root "$images/root.img"
rm -rf /srv/root
dd if="$images/root.img" of="$raw_device" bs=1M conv=fsync 2>/dev/null

while read -r name kind backend storage <&3; do
    [[ $name != "#"* ]] || continue
    note "profile $name"
    target=$images/root.img
    [[ $storage != device ]] || target=$raw_device
    guest_type=$kind guest_kernel=/srv/vmlinux guest_ramdisk=/srv/guest.cpio guest_lines=""
    if [[ $kind == pvgrub ]]; then
        guest_type=pv guest_kernel=/usr/lib/grub-xen/grub-x86_64-xen.bin guest_ramdisk=""
    fi
    case $backend in
    script) entry=$(disk xvda "raw:$target") ;;
    phy) entry="format=raw,vdev=xvda,access=rw,target=$target" ;;
    qdisk)
        entry="format=raw,vdev=xvda,access=rw,backendtype=qdisk,target=$target"
        guest_lines='device_model_override = "/usr/lib/xbb/xbb-dm"'
        ;;
    esac
    guest_memory=384 guest_extra="root=/dev/xvda rw" guest_create "$name" "$entry"
    guest "$name" 'set -e
        grep -q "^/dev/xvda / ext4 rw" /proc/mounts
        md5sum /bin/busybox >/sum; sync; echo 3 >/proc/sys/vm/drop_caches; md5sum -c /sum' || fail "profile $name"
    kinds=$(xbbctl list --json | jq -r '[.vbds[].kind] | join(" ")')
    [[ $kinds == "$([[ $backend == qdisk ]] && echo qdisk || echo vbd)" ]] || fail "profile $name: XBB serves '$kinds'"
    guest_shutdown "$name"
    assert_nothing_left
    e2fsck -fn "$target"
done 3</host/lib/profiles
xbbd_stop
xbbd_start
