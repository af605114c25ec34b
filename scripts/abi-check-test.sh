#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Breaks the plugin header in every way that abi-check.sh must notice, and extends it in those that it must allow.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# Changes a copy of the header, which is the next minor version, so that what is compared is not only its text.
# usage: try NAME allowed|caught SED-SCRIPT [TEXT OF THE MESSAGE]...
try() {
    local name=$1 expected=$2 script=$3 text result=allowed
    shift 3
    mkdir "$work/$name"
    sed -E -e "$script" Sources/PluginAPI/include/xbb_plugin.h >"$work/$name/xbb_plugin.h"
    if cmp -s Sources/PluginAPI/include/xbb_plugin.h "$work/$name/xbb_plugin.h"; then
        echo "abi-check-test: $name changes nothing: the header is not as this test knows it" >&2
        failed=1
        return
    fi
    scripts/abi-check.sh "$work/$name/xbb_plugin.h" >"$work/$name/out" 2>&1 || result=caught
    if [[ $result != "$expected" ]]; then
        echo "abi-check-test: $name was $result:" >&2
        cat "$work/$name/out" >&2
        failed=1
    fi
    for text in "$@"; do
        grep -qF -- "$text" "$work/$name/out" && continue
        echo "abi-check-test: the message about $name does not say '$text':" >&2
        cat "$work/$name/out" >&2
        failed=1
    done
}
next='s/^(#define XBB_ABI_MINOR ).*/\14u/'
# The number of a version that Tests/ABI has.
frozen='s/^(#define XBB_ABI_MINOR ).*/\10u/'
# The asserts of sizes in the header itself are not what is tested.
quiet='/^XBB_STATIC_ASSERT\(/d'

try inserted-field caught "$next;$quiet;/^    uint32_t +logical_block;/i uint64_t inserted;" \
    "'struct xbb_info" "offsetof(struct xbb_info, physical_block) == 28"
try renumbered-constant caught "$next;s/(XBB_OP_DISCARD +=) 4/\1 6/" "XBB_OP_DISCARD == 4"
try renumbered-bit caught "$next;s/(XBB_CAP_FUA +\(1ull <<) 2\)/\1 12)/" "XBB_CAP_FUA == 4"
try removed-constant caught "$next;/XBB_NOTIFY_FOUND +=/d" "XBB_NOTIFY_FOUND"
try retyped-field caught "$next;$quiet;s/uint64_t( +length;  +)/int64_t \1/" "'struct xbb_req"
try narrowed-field caught "$next;s/uint64_t( +max_discard;)/uint32_t\1/" "xbb_info *)0)->max_discard) == 8"
try removed-callback caught "$next;/^    void \(\*cancel\)/d" "'struct xbb_plugin" "offsetof(struct xbb_plugin, drain_begin)"
try removed-last-callback caught "$next;/The plugin's side of host/,/^};/{/\(\*extension\)/d}" "extension"
try changed-callback caught "$next;s/(void \(\*cancel\)\(void \*q, struct xbb_req \*req)\)/\1, int why)/" "->cancel is void (*)(void *q, struct xbb_req *req)"
try changed-result caught "$next;s/uint32_t \(\*poll\)/int (*poll)/" "->poll is uint32_t (*)(void *q)"
try changed-callback-type caught "$next;s/(typedef void \(\*xbb_stat_fn\).*)uint64_t/\1int64_t/" "xbb_stat_fn"
try swapped-callbacks caught "$next;s/\(\*mem_map\)/(*SWAP)/;s/\(\*mem_unmap\)/(*mem_map)/;s/\(\*SWAP\)/(*mem_unmap)/" "mem_map"
try grown-request caught "$next;$quiet;s/^(    uint64_t +reserved2)\[2\]/\1[4]/" "sizeof(struct xbb_req) == 64"
try grown-option caught "$next;$quiet;/^    uint64_t +reserved;/a uint64_t more;" "sizeof(struct xbb_option) == 64"
try addition-without-number caught "$frozen;/^    uint64_t +max_write_zeroes;/a uint64_t max_copy;" "raise XBB_ABI_MINOR"

try added-field allowed "$next;/^    uint64_t +max_write_zeroes;/a uint64_t max_copy;" "plugins of 1.0 1.1 1.2 still fit"
try added-callback allowed "$next;/The plugin's side of host/,/^};/{/^};/i int (*copy)(void *dev);
}"
try added-constant allowed "$next;/XBB_CAP_ROTATIONAL/a #define XBB_CAP_COPY (1ull << 10)"
try named-reserved-field allowed "$next;s/^(    uint32_t +)reserved1;(  +.*)?$/\1priority;/"

# The man page, without a function, without a constant, and with one that there is not.
try_page() { # NAME SED-SCRIPT TEXT
    sed -E -e "$2" docs/man/xbb-plugin.3 >"$work/$1.3"
    if scripts/abi-page.py Sources/PluginAPI/include/xbb_plugin.h "$work/$1.3" 2>"$work/$1.out" ||
        ! grep -qF -- "$3" "$work/$1.out"; then
        echo "abi-check-test: a page with $1 passes for complete" >&2
        failed=1
    fi
}
try_page "no function" '/Fn timer_add/d' "has no entry '.Fn timer_add'"
try_page "no constant" '/XBB_CAP_ROTATIONAL/d' "does not have XBB_CAP_ROTATIONAL"
try_page "an unknown constant" 's/XBB_OP_DISCARD/XBB_OP_TRIM/' "speaks of XBB_OP_TRIM"
[[ $failed -eq 0 ]] || exit 1
echo "abi-check-test: breaks of the plugin ABI are caught, additions are not"
