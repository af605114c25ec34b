// SPDX-License-Identifier: BSD-2-Clause
// What `struct xbb_hdev` is to the host: the open disk, as the plugin's messages and children need it.
import Base
import PluginAPI
import Support
import Synchronization

/// What `struct xbb_hdev` points to: the open disk, as the plugin's messages need it.
final class HostDevice: Sendable {
    let log: Log
    private let limit = RateLimit(burst: 20, perSecond: 2)
    private let onNotify: @Sendable (UInt32) -> Void
    private let kin = Mutex(Kin())

    /// Opens what an image names.
    typealias ChildOpener = @Sendable (xbb_ref) throws(OperationError) -> HostChild

    private struct Kin {
        var opener: ChildOpener?
        var children: [HostChild] = []
        var failure: OperationError?
    }

    /// `onNotify` is called on any thread with an `XBB_NOTIFY_` number.
    init(log: Log, onNotify: @escaping @Sendable (UInt32) -> Void) {
        self.log = log
        self.onNotify = onNotify
    }

    func immortalPointer() -> OpaquePointer {
        unsafe OpaquePointer(Unmanaged.passRetained(self).toOpaque())
    }

    static func from(_ pointer: OpaquePointer?) -> HostDevice? {
        guard let pointer = unsafe pointer else { return nil }
        return unsafe Unmanaged<HostDevice>.fromOpaque(UnsafeRawPointer(pointer)).takeUnretainedValue()
    }

    func message(_ level: LogLevel, _ text: String) {
        guard let dropped = limit.admit() else { return }
        if dropped > 0 { log.warning("plugin: \(dropped) messages were dropped") }
        log.write(level, "plugin: \(text)")
    }

    func notify(_ what: UInt32) { onNotify(what) }

    /// From now on child_open() opens files, with nil no more: it is for open() alone.
    func allowChildren(_ opener: ChildOpener?) { kin.withLock { $0.opener = opener } }

    /// What was opened for the disk, as long as it is open.
    var children: [HostChild] { kin.withLock { $0.children } }

    /// Why a child could not be opened: a chain's reason in full length, where each plugin has room for 247 bytes.
    var childFailure: OperationError? { kin.withLock { $0.failure } }

    /// `child_open()`.
    func openChild(_ reference: xbb_ref) throws(OperationError) -> HostChild {
        guard let opener = kin.withLock({ $0.opener }) else {
            throw OperationError(.open, "child_open() is for open() alone")
        }
        do throws(OperationError) {
            let child = try opener(reference)
            kin.withLock { $0.children.append(child) }
            return child
        } catch {
            kin.withLock { $0.failure = error }
            throw error
        }
    }
}
