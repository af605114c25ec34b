#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Installs the Debian packages that the Xen lab needs beyond those of the build, if any is missing.
set -euo pipefail
exec "$(dirname "$0")/../scripts/setup.sh" qemu-system-x86 kmod cpio binutils debootstrap xz-utils zstd
