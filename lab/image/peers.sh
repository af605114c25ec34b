#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# What dom0 gets for a comparison beyond the lean image: QEMU, as Xen's toolstack starts it, and qemu-img.
# usage: tree=TREE peers.sh OUTPUT.tar
set -euo pipefail
lab=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=lab/image/lib.sh
. "$lab/image/lib.sh"
output=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
copy_closure "$root" usr/libexec/xen-qemu-system-i386 usr/bin/{qemu-img,qemu-nbd}
copy_file "$root" usr/share/qemu/keymaps/en-us
tar -C "$root" -cf "$output" .
