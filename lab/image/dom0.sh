#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# The lean dom0: an initramfs with Xen's toolstack, XenStore, the console daemon and what the tests call.
# usage: tree=TREE dom0.sh OUTPUT
set -euo pipefail
lab=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=lab/image/lib.sh
. "$lab/image/lib.sh"
output=$1
image=$(mktemp -d)
trap 'rm -rf "$image"' EXIT
chmod 755 "$image"
mkdir -p "$image"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,run,tmp,host,srv,root,etc,var/{lib,log,run}/xen,var/lib/xenstored,usr/lib/xen-4.17/bin}

xen=usr/lib/xen-4.17/bin
copy_closure "$image" bin/bash usr/bin/flock usr/bin/setpriv usr/bin/env sbin/losetup usr/bin/stat usr/bin/logger usr/bin/cmp usr/bin/diff bin/dd usr/bin/timeout usr/bin/strace \
    usr/bin/jq usr/bin/sort bin/cp usr/bin/truncate sbin/mke2fs sbin/e2fsck sbin/debugfs sbin/sfdisk \
    usr/bin/xenstore "$xen"/{xl,xenstored,xenconsoled,xen-init-dom0,libxl-save-helper,lsevtchn,xenconsole}
# What our packages depend on.
copy_closure "$image" usr/lib/x86_64-linux-gnu/{libstdc++.so.6,libaio.so.1,libxenstore.so.4,libxengnttab.so.1,libxenevtchn.so.1,libqcow.so.1,libgnutls.so.30}
for name in exists list ls read rm watch write chmod; do
    copy_closure "$image" "usr/bin/xenstore-$name"
done
for name in mkfs.ext4 mkfs.ext2; do
    ln -s mke2fs "$image/sbin/$name"
done
ln -s "/$xen/xl" "$image/usr/sbin/xl"
cp -a "$tree/etc/xen" "$image/etc/xen"
# GRUB as a guest's kernel, with its own blkfront.
install -D -m 644 -t "$image/usr/lib/grub-xen" "$tree/usr/lib/grub-xen/grub-x86_64-xen.bin"
copy_busybox "$image"
copy_modules "$image" virtio_pci virtio_blk 9p 9pnet_virtio xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs loop ext4 \
    crc32c_generic xen-blkback xen-blkfront bfq
cat >"$image/etc/passwd" <<END
root:x:0:0:root:/root:/bin/bash
xbb:x:990:990:XBB:/:/bin/false
nobody:x:65534:65534:nobody:/:/bin/false
END
printf "root:x:0:\nxbb:x:990:\n" >"$image/etc/group"
install -m 755 "$lab/dom0/init" "$image/init"
install -m 755 "$lab/dom0/agent" "$image/sbin/lab-agent"
pack "$image" "$output"
