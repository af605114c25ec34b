#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Installs what writers of storage plugins build against; it needs nothing that was built. The Debian package xbb-plugin-dev
# has these files.
# usage: [DESTDIR=dir] [PREFIX=/usr/local] install-dev.sh
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=${PREFIX:-/usr/local}
[[ $prefix == /* && $prefix != */ ]] || { echo "install: PREFIX must be an absolute path without '/' at its end" >&2; exit 64; }
to=${DESTDIR:-}$prefix
version=$(sed -nE 's/.*xbbVersion = "([^"]+)".*/\1/p' Sources/Support/Version.swift)

install -D -m 644 -t "$to/include/xbb" Sources/PluginAPI/include/xbb_plugin.h Sources/PluginAPI/include/module.modulemap
install -d "$to/share/pkgconfig"
sed -e "s|@PREFIX@|$prefix|g" -e "s|@VERSION@|$version|g" packaging/xbb-plugin-1.pc.in >"$to/share/pkgconfig/xbb-plugin-1.pc"
chmod 644 "$to/share/pkgconfig/xbb-plugin-1.pc"
install -D -m 644 -t "$to/share/man/man3" docs/man/*.3

# PluginKit is compiled with each plugin, against the header above.
kit=$to/share/xbb/PluginKit
install -D -m 644 -t "$kit/Sources/PluginKit" Plugins/Kit/*.swift
install -D -m 644 -t "$kit" packaging/PluginKit/Package.swift Plugins/plugin.map
ln -sfn ../../../include/xbb "$kit/PluginAPI"

# Not what somebody built in these folders.
documents=$to/share/doc/xbb-plugin-dev
for file in $(cd examples && find . -type f -not -path '*/target/*' -not -path '*/.build/*' -not -name '*.so'); do
    install -D -m 644 "examples/$file" "$documents/examples/$file"
done
install -D -m 644 -t "$documents/examples/c-null" Plugins/Testing/Null/null.c
