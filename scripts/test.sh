#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Runs all tests of what `make build` built, and counts them at the end.
# usage: test.sh [swift test options]
set -uo pipefail
cd "$(dirname "$0")/.."
# Where tests find the products: as they were built, and as they are laid out for use.
export XBB_BUILD_DIR=$PWD/.build/debug XBB_STAGE_DIR=$PWD/build/debug
# A crash must end a test run, not wait for a debugger.
export SWIFT_BACKTRACE=enable=no
log=$(mktemp)
swift test --skip-build --no-parallel "$@" 2>&1 | tee "$log"
result=${PIPESTATUS[0]}
passed=$(grep -cE '^(✔|􁁛) +Test .* passed after|^. Test .* passed after' "$log" || true)
failed=$(grep -cE '^. +Test .* failed after' "$log" || true)
rm -f "$log"
echo "$passed passed, $failed failed"
[[ $result -eq 0 && $failed -eq 0 && $passed -gt 0 ]]
