#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Installs the Debian packages that building, testing and the demo need, and those that are named, if any is missing.
# usage: setup.sh [PACKAGE...]
set -euo pipefail

packages=(build-essential pkg-config libxen-dev libaio-dev libqcow-dev zlib1g-dev libqcow-utils xenstore-utils nbdkit nbdkit-plugin-dev libnbd-bin
    qemu-utils fio e2fsprogs jq strace util-linux python3 shellcheck abigail-tools "$@")

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $status == ii* ]] || missing+=("$package")
done
if [[ ${#missing[@]} -gt 0 ]]; then
    echo "setup: installing ${missing[*]}"
    sudo=()
    if [[ $(id -u) -ne 0 ]]; then
        command -v sudo >/dev/null || { echo "setup: these packages are missing, and only root can install them: ${missing[*]}" >&2; exit 1; }
        sudo=(sudo)
    fi
    log=$(mktemp)
    for attempt in 1 2 3; do
        if "${sudo[@]}" apt-get update -qq >"$log" 2>&1 &&
            "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
            rm -f "$log"
            echo "setup: done"
            break
        fi
        echo "setup: attempt $attempt failed" >&2
        if [[ $attempt -eq 3 ]]; then
            tail -20 "$log" >&2
            exit 1
        fi
        sleep 5
    done
fi
command -v swift >/dev/null || { echo "setup: swift is missing: install Swift 6.2 or later (swift.org) and put it on the PATH" >&2; exit 1; }
