#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Figures of QCOW images beside libqcow and qemu-nbd; see bench-qcow.py --help. Needs what `make build-release` builds.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 scripts/bench-qcow.py "$@"
