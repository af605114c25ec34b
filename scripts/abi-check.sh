#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Compares the plugin header with every version that was frozen in Tests/ABI: plugins built then must work now.
# Fields may be added at the end of structs that begin with struct_size; nothing else may change.
# usage: abi-check.sh [HEADER]
set -euo pipefail
cd "$(dirname "$0")/.."
header=$(realpath "${1:-Sources/PluginAPI/include/xbb_plugin.h}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
broken=0

scripts/abi-dump.sh "$header" "$work"
for frozen in Tests/ABI/xbb-plugin-*.abi; do
    version=${frozen##*-} version=${version%.abi}
    # Without --leaf-changes-only the suppression of one struct hides changes of those that it points to.
    status=0
    abidiff --leaf-changes-only --no-show-locs --suppressions Tests/ABI/append-only.supp \
        "$frozen" "$work/types.so" >"$work/report" || status=$?
    if [[ $status -ne 0 ]]; then
        echo "abi-check: types of ABI $version changed; only the end of a struct with struct_size may grow:" >&2
        cat "$work/report" >&2
        broken=1
    fi
    if ! gcc -std=c11 -fsyntax-only -I "$(dirname "$header")" -x c "Tests/ABI/xbb-plugin-$version.c" 2>"$work/report"; then
        echo "abi-check: what ABI $version froze is not so any more:" >&2
        grep -E 'error:' "$work/report" | cut -d: -f4- >&2
        broken=1
    fi
done

# What is new needs a new number, so that a plugin can ask for it; and its file here, from the day of its release on.
version=$(sed -nE 's/^#define XBB_ABI_(MAJOR|MINOR) ([0-9]+)u$/\2/p' "$header" | paste -sd.)
if [[ $broken -eq 0 && -e Tests/ABI/xbb-plugin-$version.c ]] &&
    ! diff -u "Tests/ABI/xbb-plugin-$version.c" "$work/asserts.c" >"$work/report"; then
    echo "abi-check: this is not ABI $version as it was frozen: raise XBB_ABI_MINOR" >&2
    cat "$work/report" >&2
    broken=1
fi
[[ $broken -eq 0 ]] || exit 1
echo "abi-check: plugins of $(basename -s .abi -a Tests/ABI/xbb-plugin-*.abi | sed 's/.*-//' | paste -sd' ') still fit"
