#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Installs what `make build-release` built: the one place that knows where things belong.
# usage: [DESTDIR=dir] [PREFIX=/usr/local] install-tree.sh
set -euo pipefail
cd "$(dirname "$0")/.."
destination=${DESTDIR:-}
prefix=${PREFIX:-/usr/local}
# /usr has its units and module options in /lib, as Debian 12 wants them; others below themselves, where systemd and kmod
# look for them in /usr/local.
system=$([[ $prefix == /usr ]] && echo /lib || echo "$prefix/lib")
from=${XBB_BUILT:-.build/release}
version=$(sed -nE 's/.*xbbVersion = "([^"]+)".*/\1/p' Sources/Support/Version.swift)
library=$destination$prefix/lib/xbb
nbdkit=$destination${NBDKIT_PLUGINDIR:-$(pkg-config --variable=plugindir nbdkit)}
man=$destination$prefix/share/man
completions=$destination$prefix/share/bash-completion/completions
zsh_completions=$destination$prefix/share/zsh/vendor-completions
fish_completions=$destination$prefix/share/fish/vendor_completions.d

[[ $prefix == /* && $prefix != */ ]] || { echo "install: PREFIX must be an absolute path without '/' at its end" >&2; exit 64; }
[[ -x $from/xbbd ]] || { echo "install: $from/xbbd is missing: make build-release first" >&2; exit 1; }

objects=()
# Copies a program or library; the folder of the Swift runtime is given relative to its own.
put_object() { # FILE DESTINATION RUNTIME
    install -D -m "$([[ $2 == *.so ]] && echo 644 || echo 755)" "$1" "$2"
    if readelf -d "$2" | grep -q 'NEEDED.*libswift'; then
        # Swift names libraries of which nothing is used (ldd -u); without them a worker is 1 MB smaller.
        { ldd -u "$1" || true; } | sed -nE 's|.*/(libswift[^/]*)$|\1|p' | xargs -rI{} patchelf --remove-needed {} "$2"
        patchelf --set-rpath "\$ORIGIN/$3" "$2"
        objects+=("$2")
    else
        patchelf --remove-rpath "$2"
    fi
}
put_template() { # FILE DESTINATION
    install -d "$(dirname "$2")"
    sed -e "s|@PREFIX@|$prefix|g" -e "s|@VERSION@|$version|g" "$1" >"$2"
    chmod 644 "$2"
}

for program in xbbd xbb-vbd xbbctl; do
    put_object "$from/$program" "$destination$prefix/sbin/$program" ../lib/xbb/swift
done
for program in xbb-loopback xbb-blkfront xbb-plugin-check; do
    put_object "$from/$program" "$destination$prefix/bin/$program" ../lib/xbb/swift
done
put_object "$from/xbb-dm" "$library/xbb-dm" swift
for plugin in "$from"/libxbb-*.so; do
    name=$(basename "$plugin")
    put_object "$plugin" "$library/plugins/${name#lib}" ../swift
done
put_object "$from/libnbdkit-xbb-plugin.so" "$nbdkit/nbdkit-xbb-plugin.so" \
    "$(realpath -m --relative-to="$nbdkit" "$library/swift")"

# The Swift libraries that these need, and no others.
runtime=$(swift -print-target-info | python3 -c 'import json, sys; print(json.load(sys.stdin)["paths"]["runtimeLibraryPaths"][0])')
while [[ ${#objects[@]} -gt 0 ]]; do
    mapfile -t needed < <(readelf -d "${objects[@]}" | sed -nE 's/.*NEEDED.*\[(lib[^]]*)\]/\1/p' | sort -u)
    objects=()
    for name in "${needed[@]}"; do
        [[ -e $runtime/$name && ! -e $library/swift/$name ]] || continue
        install -D -m 644 "$runtime/$name" "$library/swift/$name"
        strip --strip-unneeded "$library/swift/$name"
        objects+=("$library/swift/$name")
    done
done

scripts/describe-plugins.sh "$destination$prefix/sbin/xbb-vbd" "$library/plugins"

install -D -m 755 scripts/xen/block-xbb "$destination/etc/xen/scripts/block-xbb"
for file in etc/*; do
    [[ ! -f $file ]] || install -D -m 644 -t "$destination/etc/xbb" "$file"
done
for unit in xbbd.service xbb-metrics.socket xbb-metrics.service xbb-textfile.timer xbb-textfile.service; do
    put_template "packaging/$unit.in" "$destination$system/systemd/system/$unit"
done
install -D -m 644 packaging/xbb-dashboard.json "$destination$prefix/share/xbb/grafana/xbb-dashboard.json"
install -D -m 644 packaging/xbb-modprobe.conf "$destination$system/modprobe.d/xbb.conf"

DESTDIR=$destination PREFIX=$prefix scripts/install-dev.sh

for page in docs/man/*.[1578]; do
    install -D -m 644 -t "$man/man${page##*.}" "$page"
done
for program in xbbd xbbctl xbb-loopback xbb-blkfront; do
    install -d "$completions" "$zsh_completions" "$fish_completions"
    # It is read by a shell, not run: no interpreter.
    "$from/$program" --generate-completion-script bash | sed '1{/^#!/d}' >"$completions/$program"
    "$from/$program" --generate-completion-script zsh >"$zsh_completions/_$program"
    "$from/$program" --generate-completion-script fish >"$fish_completions/$program.fish"
    chmod 644 "$completions/$program" "$zsh_completions/_$program" "$fish_completions/$program.fish"
done
cat packaging/xbbctl-completion.sh >>"$completions/xbbctl"
