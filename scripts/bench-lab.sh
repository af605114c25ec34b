# shellcheck shell=bash
# SPDX-License-Identifier: BSD-2-Clause
# What benches of a loopback Xen begin with; to be read by them, with `root`, the staged programs, set: start_lab NAME [OPTION OF XBBD]...
# sets `work`, `xen` and `run`, has xbbd serve, and ends all of it with the bench.
export PATH=${root:?the folder of the staged programs}/bin:$PATH

# Tries a command until it succeeds; the bench ends where that takes 20 s.
wait_for() {
    for _ in $(seq 400); do "$@" >/dev/null 2>&1 && return 0; sleep 0.05; done
    echo "${0##*/}: no $1" >&2
    exit 1
}

ctl() { xbbctl "$@" --loopback "$xen" --socket "$run/xbbd.sock"; }

start_lab() {
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/xbb-$1.XXXXXX") || exit 1
    xen=$work/xen
    run=$work/run
    trap 'trap - EXIT; kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$work"' EXIT
    mkdir -p "$xen" "$run"
    xbb-loopback run --dir "$xen" >"$work/log" 2>&1 &
    wait_for xbb-loopback domain list --dir "$xen"
    xbbd --loopback "$xen" --run-dir "$run" --plugin-dir "$root/lib/xbb/plugins" --stop-workers "${@:2}" >>"$work/xbbd.log" 2>&1 &
    wait_for test -S "$run/xbbd.sock"
}
