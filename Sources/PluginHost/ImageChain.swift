// SPDX-License-Identifier: BSD-2-Clause
// The images of a disk, from the attached one down. Each image is opened while the one above it is being opened.
import Base
import CLinux
import Glibc
package import StorageKeeping
import Synchronization
import Support

/// The images of a disk, from the attached one down. Any thread.
package final class ImageChain: Sendable {
    /// One image.
    struct Image: Sendable {
        let path: String
        let format: String
        let identity: StorageIdentity
        /// Open as long as the disk is.
        let file: Int32
        /// The same file, opened a second time, for successors alone: the kernel tells an error of writing back once to each open file, and
        /// this one is asked when a process has died. nil where the file is only read, or cannot be opened so.
        let witness: Descriptor?
        /// Opened a third time: what is synced by it takes no error away from the plugin, nor from a successor.
        let synced: Descriptor?
    }

    private struct State {
        var inherited: KeptStorage?
        var images: [Image] = []
        var seen: Set<StorageIdentity> = []
    }

    let policy: BackingPolicy
    let pluginDirectories: [String]
    private let state: Mutex<State>

    package init(policy: BackingPolicy, pluginDirectories: [String], inherited: KeptStorage? = nil) {
        state = Mutex(State(inherited: inherited))
        self.policy = policy
        self.pluginDirectories = pluginDirectories
    }

    /// The open images of the process that served the disk before; nil: images are opened by their names.
    var inherited: KeptStorage? { state.withLock { $0.inherited } }

    /// All images are open: closes what is not used of the process before.
    func finish() { state.withLock { $0.inherited = nil } }

    /// The images that are open so far.
    var images: [Image] { state.withLock { $0.images } }

    /// Records an opened image. Refuses an image that is in the chain already, and one more than the policy allows.
    package func enter(_ path: String, format: String, file: Int32) throws(OperationError) {
        guard let identity = StorageIdentity(file: file) else {
            throw OperationError(.open, "cannot examine \(path)", .errno(errno))
        }
        let witness = inherited?.images.first { $0.identity == identity }?.witness ?? Self.openWitness(file)
        let synced = Self.openAgain(file)
        let most = policy.mostImages
        let problem: String? = state.withLock { state in
            if !state.seen.insert(identity).inserted {
                return "the backing file \(BackingName.shown(path)) is in the chain already: the images name each other"
            }
            if state.images.count >= most {
                return
                    "\(state.images.first?.path ?? path) has a chain of more than \(most) images; merge some of them "
                    + "(qemu-img commit, qemu-img convert)"
            }
            state.images.append(
                Image(path: path, format: format, identity: identity, file: file, witness: witness, synced: synced))
            return nil
        }
        if let problem { throw OperationError(.open, problem) }
    }

    private static func isWritable(_ file: Int32) -> Bool {
        clinux_fcntl_int(file, F_GETFL, 0) & O_ACCMODE != O_RDONLY
    }

    private static func openWitness(_ file: Int32) -> Descriptor? {
        isWritable(file) ? KeptStorage.Image.openWitness(of: file) : nil
    }

    /// Another open file of a file that may be written to.
    private static func openAgain(_ file: Int32) -> Descriptor? {
        guard isWritable(file) else { return nil }
        let again = unsafe clinux_open("/proc/self/fd/\(file)", O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0)
        return again < 0 ? nil : Descriptor(owning: again)
    }
}
