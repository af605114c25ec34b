#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# The guest: an initramfs with blkfront, file systems and fio.
# usage: tree=TREE guest.sh OUTPUT
set -euo pipefail
lab=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=lab/image/lib.sh
. "$lab/image/lib.sh"
output=$1
image=$(mktemp -d)
stubs=$(mktemp -d)
trap 'rm -rf "$image" "$stubs"' EXIT
chmod 755 "$image"
mkdir -p "$image"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,run,tmp,mnt,root,etc,newroot}
for library in libgfapi.so.0 libnbd.so.0 libibverbs.so.1 librdmacm.so.1 librados.so.2 librbd.so.1 libpmemblk.so.1 libpmem.so.1; do
    "$lab/image/stub-library.sh" "$tree/usr/bin/fio" "$library" "$stubs/$library"
done
# Busybox' shell prefers its own programs to those of the PATH, so jobs run in bash.
copy_closure "$image" bin/bash usr/bin/fio sbin/mke2fs sbin/e2fsck sbin/sfdisk sbin/blockdev usr/bin/timeout bin/dd
mkdir -p "$image/usr/lib/x86_64-linux-gnu"
cp "$stubs"/* "$image/usr/lib/x86_64-linux-gnu/"
copy_modules "$image" xen-blkfront ext4 crc32c_generic crc32c-intel
install -m 755 "$lab/guest/init" "$image/init"
# What the kernel calls when the toolstack asks for shutdown or reboot.
for name in poweroff reboot; do
    printf '#!/bin/sh\nsync\nexec /bin/busybox %s -f\n' "$name" >"$image/sbin/$name"
    chmod 755 "$image/sbin/$name"
done
copy_busybox "$image"
pack "$image" "$output"
