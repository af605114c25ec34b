#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Builds what QEMU and xl boot, in build/lab, where it is not there or older than what it is made of:
# tree/ (unpacked Debian packages), xen, vmlinux, dom0.cpio, guest.cpio; with "systemd" also systemd.img, systemd.cpio;
# with "peers" also peers.tar, which has QEMU for dom0; with "kernel-6.12" also vmlinux-6.12 and guest-6.12.cpio.
# usage: build.sh [systemd | peers | kernel-6.12]...
set -euo pipefail
lab=$(cd "$(dirname "$0")/.." && pwd)
out=$lab/../build/lab
mkdir -p "$out"
out=$(cd "$out" && pwd)
export tree=$out/tree

# Runs a command if the files that it depends on have changed since it last succeeded.
made() { # name, file... -- command...
    local name=$1 files=() sum
    shift
    while [[ $1 != -- ]]; do
        files+=("$1")
        shift
    done
    shift
    sum=$(cat "${files[@]}" | sha256sum)
    [[ $(cat "$out/$name.made" 2>/dev/null) != "$sum" ]] || return 0
    rm -f "$out/$name.made"
    "$@"
    echo "$sum" >"$out/$name.made"
    changed=1
}

kernel() {
    # shellcheck source=lab/image/lib.sh
    . "$lab/image/lib.sh"
    unpack_kernel "$tree"/boot/vmlinuz-* "$out/vmlinux"
    gunzip -c "$tree/boot/xen-4.17-amd64.gz" >"$out/xen"
}

started=$SECONDS
changed=0
made tree "$lab"/image/{packages,tree.sh} -- "$lab/image/tree.sh" "$lab/image/packages" "$tree"
made kernel "$out/tree.made" "$lab/image/lib.sh" -- kernel
made dom0 "$out/tree.made" "$lab"/image/{lib,dom0}.sh "$lab"/dom0/{init,agent} -- "$lab/image/dom0.sh" "$out/dom0.cpio"
made guest "$out/tree.made" "$lab"/image/{lib,guest,stub-library}.sh "$lab"/guest/* -- "$lab/image/guest.sh" "$out/guest.cpio"
wanted=" $* "
if [[ $wanted == *" systemd "* ]]; then
    made systemd "$out/tree.made" "$lab/../scripts/bare-debian.sh" "$lab"/image/{lib.sh,systemd.sh,systemd-packages} "$lab"/dom0/{agent,lab.service} -- \
        "$lab/image/systemd.sh" "$out/systemd.img" "$out/systemd.cpio"
fi
if [[ $wanted == *" peers "* ]]; then
    made peers-tree "$lab"/image/{peer-packages,tree.sh} -- "$lab/image/tree.sh" "$lab/image/peer-packages" "$out/peers"
    tree=$out/peers made peers "$out/peers-tree.made" "$lab"/image/{lib,peers}.sh -- "$lab/image/peers.sh" "$out/peers.tar"
fi
if [[ $wanted == *" kernel-6.12 "* ]]; then
    made kernel-6.12-tree "$lab"/image/{kernel-packages,tree.sh} -- "$lab/image/tree.sh" "$lab/image/kernel-packages" "$out/kernel-6.12"
    later() {
        # shellcheck source=lab/image/lib.sh
        . "$lab/image/lib.sh"
        unpack_kernel "$out"/kernel-6.12/boot/vmlinuz-* "$out/vmlinux-6.12"
    }
    made kernel-6.12 "$out/kernel-6.12-tree.made" "$lab/image/lib.sh" -- later
    made guest-6.12 "$out/tree.made" "$out/kernel-6.12-tree.made" "$lab"/image/{lib,guest,stub-library}.sh "$lab"/guest/* -- \
        env kernel_tree="$out/kernel-6.12" "$lab/image/guest.sh" "$out/guest-6.12.cpio"
fi
[[ $changed -eq 0 ]] || echo "lab: images are ready after $((SECONDS - started)) s"
