#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Installs the packages of build/deb in a Debian 12 without Swift, and uses, upgrades, removes and purges them there.
# "walk" runs the commands of docs/operating.md there instead (packaging/test-walk.sh), without a network.
# Needs root. The bare system is made once (build/deb-test/*.tar) and unpacked for each run, outside of this tree, which
# dh_clean searches.
# usage: deb-test.sh [walk] [DIRECTORY WITH PACKAGES]
set -euo pipefail
cd "$(dirname "$0")/.."
test="test"
base="base"
# What the test itself needs. What xbb needs, apt must find out.
include=systemd,man-db,nbdkit,libnbd-bin,gcc,libc6-dev,pkg-config,binutils,jq
# What apt finds on its own disk when it is told to install it.
fetched=()
ours=(xbb xbb-tools xbb-plugin-dev xbb-plugin-nbd xbb-plugin-qcow xbb-plugin-rbd xbb-plugin-vhd)
namespaces=()
if [[ ${1:-} == walk ]]; then
    shift
    test="test-walk"
    base="walk"
    include=systemd,procps
    fetched=(qemu-utils jq curl prometheus prometheus-node-exporter)
    ours=(xbb xbb-tools xbb-plugin-qcow xbb-plugin-vhd)
    # Its Prometheus listens where another one of this machine may.
    namespaces=(--net)
fi
packages=$(realpath "${1:-build/deb}")
kept=$PWD/build/deb-test
[[ $(id -u) -eq 0 ]] || { echo "deb-test: only root can make a root file system" >&2; exit 1; }
scripts/setup.sh debootstrap

work=$(mktemp -d /var/tmp/xbb-deb-test.XXXXXX)
root=$work/root
cleanup() {
    set +e
    if [[ -n ${outer:-} ]]; then
        kill -KILL "$outer" 2>/dev/null
        for _ in $(seq 50); do kill -0 "$outer" 2>/dev/null || break; sleep 0.1; done
    fi
    umount -q "$root/proc" "$root/sys"
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
mkdir -p "$kept" "$root"
if [[ $(cat "$kept/$base.list" 2>/dev/null) != "$include ${fetched[*]}" ]]; then
    echo "deb-test: making a bare Debian 12"
    rm -f "$kept/$base.list"
    scripts/bare-debian.sh "$root" "$include" "$kept/debootstrap.log"
    # Nothing of the system's own may use apt meanwhile.
    ln -s /dev/null "$root/etc/systemd/system/apt-daily.timer"
    ln -s /dev/null "$root/etc/systemd/system/apt-daily-upgrade.timer"
    # Debian's own settings throw what was fetched away only where there is a file for it; xbb needs some of it too.
    if [[ ${#fetched[@]} -gt 0 ]]; then
        cp "$packages"/xbb{,-tools,-plugin-qcow,-plugin-vhd}_*.deb "$root/tmp/"
        chroot "$root" sh -c 'rm -f /etc/apt/apt.conf.d/docker-clean; apt-get -q -y --download-only install "$@" /tmp/xbb*.deb' - "${fetched[@]}" \
            >>"$kept/debootstrap.log" 2>&1 || { tail -5 "$kept/debootstrap.log" >&2; exit 1; }
        rm "$root"/tmp/xbb*.deb
    fi
    tar -C "$root" -cf "$kept/$base.tar" .
    echo "$include ${fetched[*]}" >"$kept/$base.list"
else
    tar -C "$root" -xf "$kept/$base.tar"
fi
mkdir -p "$root/packages"
cp "packaging/$test.sh" docs/operating.md "$root/packages/"
for name in "${ours[@]}"; do cp "$packages/${name}"_*.deb "$root/packages/"; done

# The next version, for the upgrade.
if [[ $test == test ]]; then
    for package in "$packages"/xbb_*.deb "$packages"/xbb-tools_*.deb; do
        scripts/next-deb.sh "$package" "$root/packages/next-$(basename "$package")"
    done
else
    mkdir "$root/packages/next"
    for name in "${ours[@]}"; do scripts/next-deb.sh "$packages/${name}"_*.deb "$root/packages/next/${name}_next.deb"; done
fi

# systemd as the first process of a process tree with mounts of its own: nothing is left of them, however the test ends.
# shellcheck disable=SC2016
unshare --mount --pid --fork --cgroup "${namespaces[@]}" --kill-child bash -c '
    set -e
    [[ $2 != --net ]] || ip link set lo up
    # The root has to be a mount for services that have mounts of their own, and no chroot for those that have users of their own.
    mount --bind "$1" "$1"
    mount -t proc proc "$1/proc"
    mount -t tmpfs tmpfs "$1/run"
    mount -t tmpfs tmpfs "$1/dev"
    mkdir "$1/dev/shm" "$1/dev/pts"
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$1/dev/pts"
    ln -s pts/ptmx "$1/dev/ptmx"
    ln -s /proc/self/fd "$1/dev/fd"
    for node in null zero full random urandom tty; do touch "$1/dev/$node"; mount --bind "/dev/$node" "$1/dev/$node"; done
    mount -t tmpfs tmpfs "$1/sys"
    mkdir -p "$1/sys/fs/cgroup"
    if [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]]; then
        mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
    else
        mount -t tmpfs tmpfs "$1/sys/fs/cgroup"
        mkdir "$1/sys/fs/cgroup/systemd"
        mount -t cgroup -o none,name=systemd cgroup "$1/sys/fs/cgroup/systemd"
    fi
    cd "$1"
    pivot_root . .
    umount -l .
    cd /
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target' \
    - "$root" "${namespaces[0]:-}" >"$kept/systemd.log" 2>&1 &
outer=$!
disown "$outer"
inside() {
    nsenter --target "$(pgrep -P "$outer")" --mount --pid --cgroup "${namespaces[@]}" --root --wd \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
}
for _ in $(seq 300); do
    [[ $(inside systemctl is-system-running 2>/dev/null) =~ running|degraded ]] && break
    sleep 0.2
done
inside bash "/packages/$test.sh"
