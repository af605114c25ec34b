// SPDX-License-Identifier: BSD-2-Clause
// XenStore: how it is opened, and reads and removals for which "not there" is an answer.
import Base
import CLinux
import Glibc
public import Xen

/// The way to XenStore.
public enum StoreAccess {
    /// Opens XenStore: that of the loopback Xen in `loopback`, else that of this machine.
    ///
    /// Sets XENSTORED_PATH of this process, which libxenstore looks at; to be called before there are threads.
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
    /// The number of this domain; 0 where XenStore does not say.
    func ownDomain() throws(OperationError) -> DomainID {
        guard let text = try text("domid") else { return 0 }
        return DecimalText.domain(text) ?? 0
    }

    /// The value of a node, or nil where there is none or it may not be read.
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

    /// The children of a node; none where there is no node.
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

    /// Removes a node with all below it; none is fine.
    func removeIfPresent(_ path: String, in transaction: XenStoreTransaction = .none) throws(OperationError) {
        do throws(OperationError) {
            try remove(path, in: transaction)
        } catch {
            if !error.isNotFound { throw error }
        }
    }
}
