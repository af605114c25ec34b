#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Figures of NBD exports beside fio's nbd engine; see bench-nbd.py --help. Needs what `make build-release` builds.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 scripts/bench-nbd.py "$@"
