#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# What needs no build: formatting, shell scripts, the plugin header alone.
set -euo pipefail
cd "$(dirname "$0")/.."
swift format lint --strict --recursive Package.swift Sources Formats Plugins Tests packaging examples
echo "check: formatting is clean"
shellcheck -x scripts/*.sh scripts/xen/* packaging/*.sh .ci/run lab/setup.sh lab/xen-lab lab/image/*.sh lab/dom0/init lab/dom0/agent lab/guest/init
shellcheck --shell=sh debian/xbb.p*
# Files that source each other.
shellcheck -s bash -e SC1090,SC1091,SC2016,SC2034,SC2154 lab/lib/*.sh lab/tests/*.sh lab/bench/*.sh
echo "check: shell scripts are clean"
header=Sources/PluginAPI/include/xbb_plugin.h
for compiler in gcc clang; do
    command -v "$compiler" >/dev/null || continue
    "$compiler" -std=c11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -include "$header" -x c /dev/null
done
for compiler in g++ clang++; do
    command -v "$compiler" >/dev/null || continue
    "$compiler" -std=c++17 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -include "$header" -x c++ /dev/null
done
echo "check: xbb_plugin.h compiles alone as C11 and C++17"
scripts/abi-check.sh
scripts/abi-check-test.sh
python3 scripts/bench-test.py 2>/dev/null || { python3 scripts/bench-test.py; exit 1; }
echo "check: the benches select, count and draw what they should"
scripts/abi-page.py "$header" docs/man/xbb-plugin.3
echo "check: xbb-plugin(3) names all that is in xbb_plugin.h"

scripts/check-modules.py
echo "check: docs/architecture.md has the modules of Package.swift, and all arrows point down"

# What the documents promise of the examples.
if grep -rnE '^[^/]*[Uu]nsafe' examples/swift-ramdisk/Sources; then
    echo "check: examples/swift-ramdisk has unsafe code" >&2
    exit 1
fi
[[ $(wc -l <examples/c-memory/memory.c) -le 70 ]] || { echo "check: examples/c-memory has more than 70 lines" >&2; exit 1; }
echo "check: the tutorial is short, and the example in Swift is safe"

# Documents name tests as `SuiteTests.function`; each of them is there.
missing=0
while read -r name; do
    file=$(find Tests -name "${name%%.*}.swift")
    if [[ -z $file ]] || ! grep -qE "func ${name##*.}\(" "$file"; then
        echo "check: docs name the test $name, which does not exist" >&2
        missing=1
    fi
done < <(grep -rhoE '[A-Za-z]+Tests\.[A-Za-z0-9_]+' docs --include='*.md' | sort -u)
[[ $missing -eq 0 ]]
echo "check: tests that documents name are there"
scripts/models.py --names
echo "check: what models stand for is there"
