#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Installs the Debian packages that building, testing and the demo need, and those that are named, if any is missing.
# Swift itself must be there; what its programs need of Debian is installed too, so an unpacked archive is enough.
# usage: setup.sh [PACKAGE...]
set -euo pipefail

wanted="install Swift 6.2 or later for Debian 12 (https://www.swift.org/install/linux/) and put its usr/bin on the PATH"
command -v swift >/dev/null || { echo "setup: swift is not on the PATH: $wanted" >&2; exit 1; }

packages=(build-essential pkg-config libxen-dev libaio-dev libqcow-dev zlib1g-dev libzstd-dev libqcow-utils libvhdi-utils python3-libvhdi xenstore-utils nbdkit nbdkit-plugin-dev libnbd-bin
    ceph-mon ceph-osd ceph-common librbd-dev libgnutls28-dev gnutls-bin
    qemu-utils fio e2fsprogs jq strace util-linux python3 shellcheck abigail-tools procps spin
    prometheus python3-prometheus-client
    git ca-certificates libcurl4 libncurses6 libsqlite3-0 libxml2 tzdata "$@")
# For the example in Rust, any since 1.63.
command -v cargo >/dev/null && command -v rustc >/dev/null || packages+=(cargo rustc)

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $status == ii* ]] || missing+=("$package")
done
if [[ ${#missing[@]} -gt 0 ]]; then
    sudo=()
    if [[ $(id -u) -ne 0 ]]; then
        command -v sudo >/dev/null || {
            echo "setup: packages are missing, and there is no sudo here. As root: apt-get install ${missing[*]}" >&2
            exit 1
        }
        sudo=(sudo)
    fi
    echo "setup: installing ${missing[*]}"
    log=$(mktemp)
    # Tests start what they need: no service of these packages runs by itself. Who has a policy keeps it.
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod 755 "$policy"
        trap '"${sudo[@]}" rm -f "$policy"; rm -f "$log"' EXIT
    else
        trap 'rm -f "$log"' EXIT
    fi
    for attempt in 1 2 3; do
        if "${sudo[@]}" apt-get -o DPkg::Lock::Timeout=300 update -qq >"$log" 2>&1 &&
            "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
                install -y -qq --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
            # Nor after the next start of the machine.
            if [[ " ${missing[*]} " == *" prometheus "* ]] && command -v deb-systemd-helper >/dev/null; then
                # It asks who calls, and refuses whoever is no maintainer script.
                "${sudo[@]}" env DPKG_MAINTSCRIPT_PACKAGE=prometheus deb-systemd-helper disable prometheus.service
            fi
            echo "setup: done"
            break
        fi
        if [[ $attempt -eq 3 ]]; then
            tail -20 "$log" >&2
            echo "setup: apt-get could not install them, see above; is the network there, and is this Debian 12?" >&2
            exit 1
        fi
        echo "setup: attempt $attempt failed ($(grep -E '^[EW]:' "$log" | tail -1)), trying again" >&2
        sleep 5
    done
fi

version=$(swift --version 2>&1) || { printf 'setup: swift does not start: %s\n' "$version" >&2; exit 1; }
[[ $version =~ Swift\ version\ ([0-9]+)\.([0-9]+) ]] || { printf 'setup: this is not Swift: %s\n' "$version" >&2; exit 1; }
if ((BASH_REMATCH[1] * 100 + BASH_REMATCH[2] < 602)); then
    echo "setup: $(command -v swift) is ${BASH_REMATCH[0]}: $wanted" >&2
    exit 1
fi
