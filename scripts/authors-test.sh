#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Does what authors of plugins are told to do: each example is copied into an empty folder, where its README's commands
# build it against what xbb-plugin-dev installs, check it, and serve a disk with it, on the Xen that docs/plugin-authors.md
# sets up; and so are the commands of that page. Nothing of this tree is used but the programs of `make build`.
# usage: authors-test.sh [EXAMPLE | guide]...
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
guide=$PWD/docs/plugin-authors.md
stage=$(realpath "${XBB_STAGE_DIR:-build/debug}")
work=$(mktemp -d /var/tmp/xbb-authors.XXXXXX)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
DESTDIR='' PREFIX=$prefix scripts/install-dev.sh || exit 1
# pkg-config asks for nothing of this machine's own xbb-plugin-dev, should there be one.
export TMPDIR=$work/tmp
mkdir "$TMPDIR"
export PATH=$stage/bin:$PATH PKG_CONFIG_PATH=$prefix/share/pkgconfig XBB_PLUGINKIT=$prefix/share/xbb/PluginKit
unset CPATH C_INCLUDE_PATH XBB_LOOPBACK
examples=$prefix/share/doc/xbb-plugin-dev/examples
names=("$@")
[[ ${#names[@]} -gt 0 ]] || mapfile -t names < <(cd "$examples" && printf '%s\n' */README.md | xargs -n1 dirname)
passed=0
failed=0

commands() { # FILE SECTION: the shell commands in it
    awk -v section="## $2" '/^```$/ {inside = 0} inside && here; /^## / {here = $0 == section} /^```sh$/ {inside = 1}' "$1"
}
leave() { # a script that ends, in whatever way, leaves nothing running that it started
    # shellcheck disable=SC2016
    echo 'trap '\''result=$?; trap - EXIT; kill $(jobs -p) 2>/dev/null || true; wait; exit $result'\'' EXIT'
}
run() { # WHAT LIMIT SCRIPT: in the current folder
    local started=$SECONDS
    # More than what `leave` wrote.
    if [[ $(wc -l <"$3") -gt 1 ]] && timeout --kill-after=10 "$2" bash -euo pipefail "$3" >"$3.log" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $1 ($((SECONDS - started)) s)"
    else
        failed=$((failed + 1))
        echo "FAILED  $1 ($((SECONDS - started)) s)"
        for log in "$3.log" "$TMPDIR"/xbb.*/*.log; do [[ ! -s $log ]] || tail -20 "$log" | sed "s|^|        ${log##*/}: |"; done
        return 1
    fi
}

for name in "${names[@]}"; do
    [[ $name != guide ]] || continue
    folder=$work/authors/$name
    mkdir -p "$work/authors"
    cp -r "$examples/$name" "$folder" || { failed=$((failed + 1)); continue; }
    cd "$folder" || exit 1
    for section in Build Check; do { leave; commands README.md "$section"; } >"$work/$name-$section"; done
    {
        leave
        commands "$guide" "A Xen to try it on"
        commands README.md Serve
        commands "$guide" "Clean up"
    } >"$work/$name-Serve"
    run "$name: build" 900 "$work/$name-Build" || { cd "$work" || exit 1; continue; }
    run "$name: check" 600 "$work/$name-Check"
    run "$name: serve" 120 "$work/$name-Serve"
    cd "$work" || exit 1
done
# The guide itself, as somebody does it who reads from its beginning.
walk() { # LANGUAGE SECTION...
    local language=$1
    shift
    mkdir -p "$work/guide/$language"
    cd "$work/guide/$language" || exit 1
    {
        leave
        for section in "$@"; do commands "$guide" "$section"; done
    } >"$work/guide-$language"
    run "guide: $language" 900 "$work/guide-$language"
    cd "$work" || exit 1
}
if [[ $# -eq 0 || " $* " == *" guide "* ]]; then
    walk c "In C" "A Xen to try it on" "Serve a disk" "Clean up" "Packaging it"
    walk swift "In Swift"
    walk rust "In Rust"
fi
echo "authors-test: $passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 0 ]]
