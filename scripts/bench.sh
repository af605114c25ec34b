#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Figures beside the peers; see bench.py --help.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 scripts/bench.py "$@"
