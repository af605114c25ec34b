// SPDX-License-Identifier: BSD-2-Clause
// xbb-dm: what libxl starts in place of QEMU for a guest whose disks below backend/qdisk XBB serves.
import Glibc
import Support
import XBBControl

let usage = """
    usage: xbb-dm -xen-domid DOMID -xen-attach [OPTION]...

    Stands in for QEMU as the device model of a PV or PVH guest whose disks XBB serves. libxl starts it:
    device_model_override="/usr/lib/xbb/xbb-dm" in the guest's configuration. See xbb-dm(8).

      --wait SECONDS    how long the disks may take to open (40); device_model_args=["--wait","50"]
      --loopback DIR    run on the loopback Xen at DIR instead of on Xen
      --help            this text
      --version         the version

    All other options are those that libxl gives to QEMU. Exit status: 0 the guest is over or a signal came, 1 a failure,
    64 wrong usage, 69 XenStore cannot be reached, 75 a disk was not opened in time.

    """

func show(_ text: String) {
    _ = unsafe text.withCString { unsafe write(1, $0, strlen($0)) }
}

let words = Array(CommandLine.arguments.dropFirst())
if words.contains("--help") || words.isEmpty {
    show(usage)
    exit(words.isEmpty ? ControlStatus.usage.rawValue : 0)
}
if words.contains("--version") {
    show("xbb-dm \(xbbVersion)\n")
    exit(0)
}
let log = Log(name: "xbb-dm", level: .info)
do throws(ControlError) {
    let arguments = try DeviceModelArguments(parsing: words)
    let store = try StoreAccess.open(loopback: arguments.loopback)
    try DeviceModel(arguments, store: store, log: log).run()
} catch {
    log.error(error.description)
    exit(error.status.rawValue)
}
