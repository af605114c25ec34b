#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# The dom0 with systemd: a Debian made by debootstrap, on a disk image, for tests of packages and units. Needs root.
# usage: tree=TREE systemd.sh IMAGE INITRAMFS
set -euo pipefail
lab=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=lab/image/lib.sh
. "$lab/image/lib.sh"
output=$1 initramfs=$2
root=$(mktemp -d)
boot=$(mktemp -d)
trap 'rm -rf --one-file-system "$root" "$boot"' EXIT
chmod 755 "$root" "$boot"
include=$(grep -v '^#' "$lab/image/systemd-packages" | paste -sd,)
echo "lab: making a Debian with systemd"
"$lab/../scripts/bare-debian.sh" "$root" "$include" "$output.log"
# Security updates: debootstrap takes what was released, and packages are built with what is current.
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get -q -y upgrade >>"$output.log" 2>&1 ||
    { tail -5 "$output.log" >&2; exit 1; }
copy_modules "$root" virtio_pci virtio_blk 9p 9pnet_virtio xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs loop ext4 \
    crc32c_generic xen-blkback xen-blkfront
install -m 755 "$lab/dom0/agent" "$root/usr/sbin/lab-agent"
install -m 644 "$lab/dom0/lab.service" "$root/etc/systemd/system/lab.service"
mkdir -p "$root"/{host,srv/disk}
ln -s ../lab.service "$root/etc/systemd/system/multi-user.target.wants/lab.service"
echo 'XENCONSOLED_ARGS="--log=guest"' >>"$root/etc/default/xen"
printf '%s\n' virtio_pci 9pnet_virtio 9p loop >"$root/etc/modules-load.d/lab.conf"
cat >"$root/etc/fstab" <<END
/dev/vdc / ext4 defaults 0 0
host /host 9p trans=virtio,version=9p2000.L,msize=262144,cache=none 0 0
/dev/vdb /srv/disk ext4 defaults 0 0
END
echo dom0 >"$root/etc/hostname"
# Nothing that waits for what is not there.
ln -sf /dev/null "$root/etc/systemd/system/serial-getty@hvc0.service"
rm -rf "$root"/var/cache/apt/archives/*.deb
rm -f "$output"
mke2fs -q -t ext4 -L dom0 -d "$root" "$output" 1500M

mkdir -p "$boot"/{bin,sbin,dev,proc,sys,new}
copy_busybox "$boot"
copy_modules "$boot" virtio_pci virtio_blk crc32c_generic ext4
cat >"$boot/init" <<'END'
#!/bin/sh
PATH=/sbin:/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in virtio_pci virtio_blk crc32c_generic ext4; do modprobe $module; done
until [ -b /dev/vdc ]; do sleep 0.1; done
mount -t ext4 /dev/vdc /new
umount /sys /proc
mount --move /dev /new/dev
exec switch_root /new /sbin/init
END
chmod 755 "$boot/init"
pack "$boot" "$initramfs"
