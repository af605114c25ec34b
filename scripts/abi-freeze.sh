#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Keeps the plugin ABI as it is now in Tests/ABI, under its version. For a release that adds something, once: a version
# that was released is never written again.
# usage: abi-freeze.sh
set -euo pipefail
cd "$(dirname "$0")/.."
header=$PWD/Sources/PluginAPI/include/xbb_plugin.h
version=$(sed -nE 's/^#define XBB_ABI_(MAJOR|MINOR) ([0-9]+)u$/\2/p' "$header" | paste -sd.)
[[ $version =~ ^[0-9]+\.[0-9]+$ ]] || { echo "abi-freeze: no version in $header" >&2; exit 1; }
for file in "Tests/ABI/xbb-plugin-$version".{abi,c}; do
    [[ ! -e $file ]] || { echo "abi-freeze: $file is there already: raise XBB_ABI_MINOR first" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
scripts/abi-dump.sh "$header" "$work"
mv "$work/types.abi" "Tests/ABI/xbb-plugin-$version.abi"
mv "$work/asserts.c" "Tests/ABI/xbb-plugin-$version.c"
echo "abi-freeze: version $version is in Tests/ABI"
