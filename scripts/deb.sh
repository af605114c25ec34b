#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Builds the Debian packages and looks at them with lintian. What Swift compiled is kept for the next time.
# usage: deb.sh [DIRECTORY]    (build/deb)
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-build/deb}")
scripts/setup.sh debhelper fakeroot lintian patchelf

rm -rf "$out"
mkdir -p "$out"
export XBB_KEEP_BUILD=1 XBB_DEB_DIR=$out DEB_BUILD_OPTIONS="${DEB_BUILD_OPTIONS:+$DEB_BUILD_OPTIONS }parallel=${JOBS:-$(nproc)}"
echo "deb: building, see $out/build.log"
name=xbb_$(dpkg-parsechangelog -S Version)_$(dpkg --print-architecture)
if ! dpkg-buildpackage -us -uc -b --buildinfo-file="$out/$name.buildinfo" --changes-file="$out/$name.changes" \
    --buildinfo-option="-u$out" --changes-option="-u$out" >"$out/build.log" 2>&1; then
    tail -20 "$out/build.log" >&2
    exit 1
fi
for package in "$out"/*.deb; do
    echo "deb: ${package#"$PWD"/}: $(dpkg-deb -f "$package" Installed-Size) KiB installed, $(($(stat -c %s "$package") / 1024)) KiB packed"
done
# As root lintian says that it should not be; nothing of what it looks at depends on it.
lintian --allow-root --info --fail-on error,warning --tag-display-limit 0 "$out/$name.changes"
echo "deb: lintian found nothing"
