#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Makes a Debian 12 in a folder, with apt set up as on this machine. Needs root and debootstrap.
# usage: bare-debian.sh FOLDER PACKAGE[,PACKAGE...] LOG
set -euo pipefail
root=$1 include=$2 log=$3
[[ $(id -u) -eq 0 ]] || { echo "bare-debian: only root can make a root file system" >&2; exit 1; }
# shellcheck disable=SC2016  # apt's own variables
mirror=$(apt-get indextargets --format '$(SITE)' "Created-By: Packages" "Release: bookworm" | head -1)
debootstrap --variant=minbase --include="$include" bookworm "$root" ${mirror:+"$mirror"} >"$log" 2>&1 ||
    { tail -5 "$log" >&2; exit 1; }
# Where this machine has its packages from, and by which way.
rm -f "$root/etc/apt/sources.list"
cp -rL /etc/apt/sources.list* "$root/etc/apt/"
cp -L /usr/share/keyrings/*.gpg "$root/usr/share/keyrings/"
grep -lE '^Acquire' /etc/apt/apt.conf.d/* | xargs -r cp -L -t "$root/etc/apt/apt.conf.d" || true
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
chroot "$root" apt-get -q update >>"$log" 2>&1 || { tail -5 "$log" >&2; exit 1; }
