#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# What the plugin header says to other programs, in FOLDER: types.so, with debug information of all types that go through
# the ABI, types.abi, the same as abidw's XML, and asserts.c, with the numbers.
# usage: abi-dump.sh HEADER FOLDER
set -euo pipefail
gcc -std=c11 -g -gdwarf-4 -O0 -shared -fPIC -include "$1" -x c - -o "$2/types.so" <<'C'
const struct xbb_plugin *xbb_plugin_v1(void) { return 0; }
C
abidw --no-corpus-path --no-show-locs --no-comp-dir-path "$2/types.so" >"$2/types.abi"
"$(dirname "$0")/abi-asserts.py" "$1" >"$2/asserts.c"
