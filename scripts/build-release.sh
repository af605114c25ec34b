#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Builds every product, optimised, without the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
echo "build: release ($(swift --version 2>&1 | grep -o 'Swift version [0-9.]*' | head -1))"
# Symbols are bound at start, then their table is read-only.
swift build -c release -j "${JOBS:-$(nproc)}" -Xlinker -z -Xlinker now -Xlinker -z -Xlinker relro
echo "build: done in $((SECONDS - started)) s"
