#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Lays out what was built as it is installed: build/<configuration>/{bin,lib/xbb/plugins,lib/nbdkit}.
# usage: stage.sh debug|release
set -euo pipefail
cd "$(dirname "$0")/.."
configuration=$1
from=.build/$configuration
to=build/$configuration

install -d -m 755 build "$to" "$to/bin" "$to/lib" "$to/lib/xbb" "$to/lib/xbb/plugins" "$to/lib/nbdkit"
for program in xbbd xbb-vbd xbbctl xbb-dm xbb-loopback xbb-blkfront xbb-bench xbb-plugin-check; do
    [[ -e $from/$program ]] && install -m 755 "$from/$program" "$to/bin/$program"
done
for library in "$from"/libxbb-*.so; do
    name=$(basename "$library")
    install -m 755 "$library" "$to/lib/xbb/plugins/${name#lib}"
done
scripts/describe-plugins.sh "$to/bin/xbb-vbd" "$to/lib/xbb/plugins"
[[ -e $from/libnbdkit-xbb-plugin.so ]] && install -m 755 "$from/libnbdkit-xbb-plugin.so" "$to/lib/nbdkit/nbdkit-xbb-plugin.so"
exit 0
