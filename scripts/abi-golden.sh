#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Builds the plugins of Tests/ABI/golden for the version of the ABI that the header has, once: what is kept there is what
# was built then, and every later host must serve it. Rust (rustc) and Swift are needed only here.
# usage: abi-golden.sh
set -euo pipefail
cd "$(dirname "$0")/../Tests/ABI/golden"
api=../../../Sources/PluginAPI/include
version=$(sed -nE 's/^#define XBB_ABI_(MAJOR|MINOR) ([0-9]+)u$/\2/p' $api/xbb_plugin.h | paste -sd.)
[[ ! -e $version ]] || { echo "abi-golden: Tests/ABI/golden/$version is there already, and stays as it is" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/$version"
link=(gcc -shared -s '-Wl,-z,defs' '-Wl,-z,noexecstack' '-Wl,--version-script=../../../Plugins/plugin.map')
gcc -std=gnu11 -O2 -Wall -Wextra -Werror -fPIC -I $api -c golden-c.c -o "$work/c.o"
"${link[@]}" "$work/c.o" -o "$work/$version/xbb-golden-c.so"
rustc --edition 2021 -C opt-level=s -C panic=abort -C lto=fat -C strip=symbols --crate-type cdylib \
    golden-rust.rs -o "$work/$version/xbb-golden-rust.so"
swiftc -O -wmo -parse-as-library -enable-experimental-feature Embedded -module-name Golden -I libc -I $api \
    -emit-object golden-swift.swift -o "$work/swift.o"
"${link[@]}" "$work/swift.o" -o "$work/$version/xbb-golden-swift.so"
chmod 644 "$work/$version"/*
mv "$work/$version" "$version"
ls -l "$version"
