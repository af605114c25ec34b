// SPDX-License-Identifier: BSD-2-Clause
// XenStore: how it is opened, and reads and removals that accept a missing node.
import Base
import CLinux
import Glibc
public import Xen

/// How programs reach XenStore.
public enum StoreAccess {
    /// Opens XenStore: that of the loopback Xen in `loopback`, otherwise that of this machine.
    ///
    /// Sets this process's XENSTORED_PATH for libxenstore, so call it before other threads exist.
    public static func open(loopback: String?) throws(ControlError) -> any XenStore {
        if let loopback, unsafe setenv("XENSTORED_PATH", LoopbackPlace.storeSocket(in: loopback), 1) != 0 {
            throw ControlError("set XENSTORED_PATH: \(errnoText(errno))")
        }
        do throws(OperationError) {
            return try LibXenStore()
        } catch {
            let hint =
                loopback.map { "is 'xbb-loopback run --dir \($0)' running?" }
                ?? "does this machine run on Xen? If not: --loopback DIR"
            throw ControlError("\(error); \(hint)", status: .unreachable)
        }
    }
}

extension XenStore {
    /// The number of this domain; 0 if XenStore does not say.
    func ownDomain() throws(OperationError) -> DomainID {
        guard let text = try text("domid") else { return 0 }
        return DecimalText.domain(text) ?? 0
    }

    /// The value of a node; nil if there is none or it may not be read.
    func valueIfReadable(
        _ path: String, in transaction: XenStoreTransaction = .none
    ) throws(OperationError) -> [UInt8]? {
        do throws(OperationError) {
            return try read(path, in: transaction)
        } catch {
            if error.isNotFound || error.code == EACCES { return nil }
            throw error
        }
    }

    /// The children of a node; empty if there is no node.
    func childrenIfPresent(_ path: String, in transaction: XenStoreTransaction = .none) throws(OperationError)
        -> [String]
    {
        do throws(OperationError) {
            return try list(path, in: transaction)
        } catch {
            if error.isNotFound || error.code == EACCES { return [] }
            throw error
        }
    }
}
