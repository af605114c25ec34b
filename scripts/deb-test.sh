#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Installs the packages of build/deb in a Debian 12 without Swift, and uses, upgrades, removes and purges them there.
# Needs root. The bare system is made once (build/deb-test/base.tar) and unpacked for each run, outside of this tree, which
# dh_clean searches.
# usage: deb-test.sh [DIRECTORY WITH PACKAGES]
set -euo pipefail
cd "$(dirname "$0")/.."
packages=$(realpath "${1:-build/deb}")
kept=$PWD/build/deb-test
[[ $(id -u) -eq 0 ]] || { echo "deb-test: only root can make a root file system" >&2; exit 1; }
scripts/setup.sh debootstrap

# What the test itself needs. What xbb needs, apt must find out.
include=systemd,man-db,nbdkit,libnbd-bin,gcc,libc6-dev,pkg-config,binutils,jq
work=$(mktemp -d /var/tmp/xbb-deb-test.XXXXXX)
root=$work/root
trap 'umount -q "$root/proc" "$root/sys"; rm -rf --one-file-system "$work"' EXIT
mkdir -p "$kept" "$root"
if [[ $(cat "$kept/base.list" 2>/dev/null) != "$include" ]]; then
    echo "deb-test: making a bare Debian 12"
    # shellcheck disable=SC2016  # apt's own variables
    mirror=$(apt-get indextargets --format '$(SITE)' "Created-By: Packages" "Release: bookworm" | head -1)
    rm -f "$kept/base.list"
    debootstrap --variant=minbase --include="$include" bookworm "$root" ${mirror:+"$mirror"} \
        >"$kept/debootstrap.log" 2>&1 || { tail -5 "$kept/debootstrap.log" >&2; exit 1; }
    # Where this machine has its packages from, and by which way.
    rm -f "$root/etc/apt/sources.list"
    cp -rL /etc/apt/sources.list* "$root/etc/apt/"
    cp -L /usr/share/keyrings/*.gpg "$root/usr/share/keyrings/"
    grep -lE '^Acquire' /etc/apt/apt.conf.d/* | xargs -r cp -L -t "$root/etc/apt/apt.conf.d" || true
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    chroot "$root" apt-get -qq update
    tar -C "$root" -cf "$kept/base.tar" .
    echo "$include" >"$kept/base.list"
else
    tar -C "$root" -xf "$kept/base.tar"
fi
mkdir -p "$root/packages"
cp "$packages"/xbb*.deb packaging/test.sh "$root/packages/"

# The next version, for the upgrade: the same files under a higher number.
for package in "$packages"/xbb_*.deb "$packages"/xbb-tools_*.deb; do
    dpkg-deb -R "$package" "$work/next"
    sed -i -E 's/^(Version: .*)$/\1+next/; s/\(= ([^)]*)\)/(= \1+next)/' "$work/next/DEBIAN/control"
    dpkg-deb -b --root-owner-group "$work/next" "$root/packages/next-$(basename "$package")" >/dev/null
    rm -rf "$work/next"
done

# A process tree and mounts of its own: nothing is left of them, however the test ends.
# shellcheck disable=SC2016
unshare --mount --pid --fork --kill-child bash -c '
    mount -t proc proc "$1/proc"
    mount -t tmpfs tmpfs "$1/run"
    mount -t tmpfs tmpfs "$1/dev" && mkdir "$1/dev/shm" "$1/dev/pts"
    for node in null zero full random urandom tty; do touch "$1/dev/$node"; mount --bind "/dev/$node" "$1/dev/$node"; done
    ln -s /proc/self/fd "$1/dev/fd"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 chroot "$1" bash /packages/test.sh' - "$root"
