// SPDX-License-Identifier: BSD-2-Clause
// The images below the one that is attached, opened one after the other while it is.
import Base
import CLinux
import Glibc
import Synchronization
import Support

/// What a disk consists of, from the attached image down.
package final class ImageChain: Sendable {
    /// One image.
    struct Image: Sendable, Equatable {
        let path: String
        let format: String
        let identity: StorageIdentity
    }

    private struct State {
        var images: [Image] = []
        var seen: Set<StorageIdentity> = []
    }

    let policy: BackingPolicy
    let pluginDirectories: [String]
    private let state = Mutex(State())

    package init(policy: BackingPolicy, pluginDirectories: [String]) {
        self.policy = policy
        self.pluginDirectories = pluginDirectories
    }

    /// The images so far.
    var images: [Image] { state.withLock { $0.images } }

    /// Notes an image that was opened; refuses one that is in the chain already, and one too many.
    package func enter(_ path: String, format: String, file: Int32) throws(OperationError) {
        guard let identity = StorageIdentity(file: file) else {
            throw OperationError(.open, "cannot examine \(path)", .errno(errno))
        }
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
            state.images.append(Image(path: path, format: format, identity: identity))
            return nil
        }
        if let problem { throw OperationError(.open, problem) }
    }
}
