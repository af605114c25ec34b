#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Figures of images of Ceph beside fio's rbd engine; see bench-rbd.py --help. Needs what `make build-release` builds.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 scripts/bench-rbd.py "$@"
