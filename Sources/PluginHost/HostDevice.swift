// SPDX-License-Identifier: BSD-2-Clause
// The host's side of `struct xbb_hdev`: an open disk, its plugin's messages and its children.
import Base
import CLinux
import Glibc
import PluginAPI
internal import StorageKeeping
import Support
import Synchronization

/// What `struct xbb_hdev` points to: the open disk to which a plugin's messages and children belong.
final class HostDevice: Sendable {
    let log: Log
    private let onNotify: @Sendable (UInt32) -> Void
    private let childState = Mutex(ChildState())
    private let handleState = Mutex(HandleState())
    private let listener = Mutex<TroubleListener?>(nil)

    /// Opens a file that an image names.
    typealias ChildOpener = @Sendable (xbb_ref) throws(OperationError) -> HostChild

    private struct ChildState {
        var opener: ChildOpener?
        var children: [HostChild] = []
        var failure: OperationError?
    }

    /// Who is told of warnings and errors, besides the log.
    private struct TroubleListener {
        let tell: @Sendable (String) -> Void
        /// A plugin can make up any number.
        var left = 16
    }

    /// What a plugin without a file leaves for a successor, and what its predecessor has left.
    private struct HandleState {
        /// Only during open(), for a plugin without a file: what the disk is.
        var disk: (format: String, location: String)?
        var inherited: [KeptStorage.Handle] = []
        var kept: [UInt32: KeptStorage.Handle] = [:]
    }

    /// `onNotify` is called on any thread with an `XBB_NOTIFY_` number.
    init(log: Log, onNotify: @escaping @Sendable (UInt32) -> Void) {
        self.log = log
        self.onNotify = onNotify
    }

    /// The reference is never released, so the pointer stays valid for late messages of the plugin.
    func immortalPointer() -> OpaquePointer {
        unsafe OpaquePointer(Unmanaged.passRetained(self).toOpaque())
    }

    static func from(_ pointer: OpaquePointer?) -> HostDevice? {
        guard let pointer = unsafe pointer else { return nil }
        return unsafe Unmanaged<HostDevice>.fromOpaque(UnsafeRawPointer(pointer)).takeUnretainedValue()
    }

    func message(_ level: LogLevel, _ text: String) {
        log.write(level, "plugin: \(text)")
        guard level == .warning || level == .error else { return }
        let tell = listener.withLock { listener -> (@Sendable (String) -> Void)? in
            guard let found = listener, found.left > 0 else { return nil }
            listener?.left -= 1
            return found.tell
        }
        tell?(text)
    }

    /// Tells of the next warnings and errors of the plugin, on any thread; nil: no more.
    func tellTrouble(to tell: (@Sendable (String) -> Void)?) {
        listener.withLock { $0 = tell.map { TroubleListener(tell: $0) } }
    }

    func notify(_ what: UInt32) { onNotify(what) }

    /// Allows child_open(), which then uses `opener`; nil forbids it again. It is allowed only during open().
    func allowChildren(_ opener: ChildOpener?) { childState.withLock { $0.opener = opener } }

    /// Allows keep() and kept(), which then finds `inherited`, for a disk; nil forbids both again. They are allowed only during
    /// open().
    func allowHandles(of disk: (format: String, location: String)?, inherited: [KeptStorage.Handle] = []) {
        handleState.withLock { state in
            state.disk = disk
            state.inherited = inherited
        }
    }

    /// Serves `keep()`: 0 or a negative errno.
    func keep(_ key: UInt32, _ file: Int32) -> Int32 {
        handleState.withLock { state in
            guard let disk = state.disk else { return -EOPNOTSUPP }
            let copy = clinux_fcntl_int(file, F_DUPFD_CLOEXEC, 0)
            guard copy >= 0 else { return -errno }
            guard
                let handle = KeptStorage.Handle(
                    key: key, format: disk.format, location: disk.location, file: Descriptor(owning: copy))
            else { return -EINVAL }
            state.kept[key] = handle
            return 0
        }
    }

    /// Serves `kept()`: a descriptor or a negative errno.
    func kept(_ key: UInt32) -> Int32 {
        handleState.withLock { state in
            guard state.disk != nil else { return -EOPNOTSUPP }
            return state.inherited.first { $0.key == key }?.file.raw ?? -ENOENT
        }
    }

    /// What the plugin has asked to keep; once, as this process would hold it open otherwise.
    func takeHandles() -> [KeptStorage.Handle] {
        handleState.withLock { state in
            defer { state.kept = [:] }
            return state.kept.values.sorted { $0.key < $1.key }
        }
    }

    /// The children that were opened for the disk, until it closes.
    var children: [HostChild] { childState.withLock { $0.children } }

    /// Why a child could not be opened, in full: the plugin's own error message holds only 247 bytes.
    var childFailure: OperationError? { childState.withLock { $0.failure } }

    /// Serves `child_open()`.
    func openChild(_ reference: xbb_ref) throws(OperationError) -> HostChild {
        guard let opener = childState.withLock({ $0.opener }) else {
            throw OperationError(.open, "child_open() is for open() alone")
        }
        do throws(OperationError) {
            let child = try opener(reference)
            childState.withLock { $0.children.append(child) }
            return child
        } catch {
            childState.withLock { $0.failure = error }
            throw error
        }
    }
}
