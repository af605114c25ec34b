// SPDX-License-Identifier: BSD-2-Clause
// Images of qcow2 and VHD: any bytes are looked at, read and written, and sound ones are changed and written.
import Driver
import Foundation

switch getenv("XBB_FUZZ_TARGET").map({ String(cString: $0) }) {
case "qcow-write": makeImages()
case "vhd": makeVHDs()
default: break
}
fuzz([
    "qcow-read": readImage,
    "qcow-write": writeImage,
    "vhd": useVHD,
])
