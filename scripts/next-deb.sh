#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Packs a package of ours once more under the next version, which also the packages are of that it names with one: an
# upgrade that changes nothing else.
# usage: next-deb.sh PACKAGE.deb OUTPUT
set -euo pipefail
work=$(mktemp -d /var/tmp/xbb-next.XXXXXX)
trap 'rm -rf "$work"' EXIT
dpkg-deb -R "$1" "$work/deb"
sed -i -E 's/^(Version: .*)$/\1+next/; s/\(= ([^)]*)\)/(= \1+next)/' "$work/deb/DEBIAN/control"
dpkg-deb -Znone -b --root-owner-group "$work/deb" "$2" >/dev/null
