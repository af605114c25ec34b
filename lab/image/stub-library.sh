#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Makes a library that stands for one which a program is linked with and does not use in the lab: every function of it
# ends the program. Debian's fio needs 80 MB of network storage libraries.
# usage: stub-library.sh PROGRAM SONAME OUTPUT
set -euo pipefail
program=$1 soname=$2 output=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Symbol versions that the program wants of this library, then its undefined symbols of those versions.
mapfile -t versions < <(readelf -VW "$program" |
    awk -v so="$soname" '/File: /{on = ($0 ~ "File: " so " ")} on && /Name: /{sub(/.*Name: /, ""); print $1}')
: >"$work/stub.c"
: >"$work/stub.map"
names() { # version, empty for symbols without
    readelf --dyn-syms -W "$program" | awk -v v="$1" '
        $7 == "UND" && $8 != "" { n = split($8, p, "@"); if ((v == "" && n == 1) || (v != "" && p[n] == v)) print p[1] }' | sort -u
}
emit() { # version node
    local name
    echo "$1 { global:" >>"$work/stub.map"
    while read -r name; do
        echo "void $name(void) { __builtin_trap(); }" >>"$work/stub.c"
        echo "$name;" >>"$work/stub.map"
    done
    echo "};" >>"$work/stub.map"
}
if [[ ${#versions[@]} -gt 0 ]]; then
    for version in "${versions[@]}"; do
        names "$version" | emit "$version"
    done
    gcc -shared -fPIC -fno-builtin -w -Wl,-soname,"$soname" -Wl,--version-script="$work/stub.map" -o "$output" "$work/stub.c"
else
    # Without versions the names tell: rbd_open is one of librbd.
    stem=${soname#lib}
    while read -r name; do
        echo "void $name(void) { __builtin_trap(); }" >>"$work/stub.c"
    done < <(names "" | grep "^${stem%%.*}_")
    gcc -shared -fPIC -fno-builtin -w -Wl,-soname,"$soname" -o "$output" "$work/stub.c"
fi
