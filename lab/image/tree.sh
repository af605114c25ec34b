#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Unpacks Debian packages into a tree, without installing anything on this machine: those that a list names, one a line,
# and all that they depend on.
# usage: tree.sh LIST TREE
set -euo pipefail
list=$1
tree=$2
mkdir -p "$(dirname "$tree")"
debs=$(cd "$(dirname "$tree")" && pwd)/debs
mkdir -p "$debs/partial" "$debs/empty/partial"
mapfile -t packages < <(grep -v '^#' "$list")
# Resolved as on a machine where no package is installed.
: >"$debs/status"
apt_get() { # archives, options...
    apt-get -q -y -o Dir::State::status="$debs/status" -o Dir::Cache::archives="$1" -o Debug::NoLocking=1 \
        -o APT::Install-Recommends=0 -o APT::Sandbox::User="$(id -un)" "${@:2}" install "${packages[@]}"
}
if ! apt_get "$debs/empty" --print-uris >"$debs/log" 2>&1; then
    tail -5 "$debs/log" >&2
    echo "lab: the packages of $list are not to be had: does 'apt-get update' work?" >&2
    exit 1
fi
mapfile -t files < <(sed -n "s/^'[^']*' \([^ ]*\.deb\) .*/\1/p" "$debs/log")
echo "lab: fetching ${#files[@]} Debian packages"
for attempt in 1 2 3; do
    apt_get "$debs" -d >"$debs/log" 2>&1 && break
    if [[ $attempt -eq 3 ]]; then
        tail -5 "$debs/log" >&2
        exit 1
    fi
    sleep 5
done
rm -rf "$tree" "$tree.new"
mkdir -p "$tree.new"
for file in "${files[@]}"; do
    dpkg-deb -x "$debs/$file" "$tree.new"
done
mv "$tree.new" "$tree"
