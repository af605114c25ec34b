// SPDX-License-Identifier: BSD-2-Clause
// Images of qcow2: any bytes are looked at, read and written, and images of QEMU are changed and written.
import Driver
import Foundation

if getenv("XBB_FUZZ_TARGET").map({ String(cString: $0) }) == "qcow-write" { makeImages() }
fuzz([
    "qcow-read": readImage,
    "qcow-write": writeImage,
])
