// SPDX-License-Identifier: BSD-2-Clause
// Decides which disks are XBB's. Two backends on one node would map the same ring and answer the same requests, so a
// disk that is not known to be ours is left alone.
import Glibc
import XenBus

/// The rule by which xbbd takes disks.
///
/// Only `backend/vbd` needs one: the kernel's xen-blkback takes every node there, whatever it contains (the table
/// xen_blkbk_ids of drivers/block/xen-blkback/xenbus.c). No other directory has a driver in the kernel, and xbbd serves
/// those that it is configured for.
public struct DiskClaim: Equatable, Sendable {
    /// The directory that xen-blkback serves.
    public static let kernelKind = "vbd"
    /// The hotplug script that marks XBB's disks.
    public static let scriptName = "block-xbb"
    /// The path at which libxl looks for the script (`libxl__xen_script_dir_path`).
    public static let scriptPath = "/etc/xen/scripts/" + scriptName

    /// All disks of `backend/vbd` are XBB's, whatever their script is.
    public var takesAnyScript = false
    /// A path that exists while the kernel has a driver for `backend/vbd`.
    private let kernelDriver: String

    /// The rule for this machine, or for the loopback Xen in a directory, which has its own `sys`.
    public init(loopback: String? = nil) {
        kernelDriver = (loopback ?? "") + "/sys/bus/xen-backend/drivers/vbd"
    }

    /// True while the kernel's xen-blkback serves the directory: nobody else may serve it then.
    public func isKernels(_ kind: String) -> Bool {
        guard kind == Self.kernelKind else { return false }
        return unsafe access(kernelDriver, F_OK) == 0
    }

    /// Why a disk of `kind` whose node names `script` is not XBB's; nil if it is XBB's.
    public func objection(kind: String, script: String?) -> String? {
        guard kind == Self.kernelKind else { return nil }
        if isKernels(kind) { return "is left to the kernel's xen-blkback, which is loaded; see xbbd(8), Coexistence" }
        if takesAnyScript || script?.split(separator: "/").last.map(String.init) == Self.scriptName { return nil }
        let named = script.map { "its script is '\(OperatorText.escaped($0.utf8, limit: 128))'" } ?? "it has no script"
        return "is left alone: \(named), not \(Self.scriptName); --any-script takes it, see xbbd(8), Coexistence"
    }
}
