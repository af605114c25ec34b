// SPDX-License-Identifier: BSD-2-Clause
// Whether the files of disks are where they were: looked at by a thread of its own, because a file system may hang.
import Base
import CLinux
import Glibc
import StorageKeeping
import Synchronization

/// A file or device that a disk was served from.
struct ServedImage: Equatable, Sendable {
    let path: String
    let identity: StorageIdentity

    /// What is wrong with it now; nil: nothing. `isOpen`: the disk has the file open and serves it whatever its name leads to.
    /// Blocks as long as the file system does.
    func problem(isOpen: Bool) -> String? {
        var status = stat()
        // The call reads the path as C text, which Swift keeps for it, and fills the structure, which is ours.
        if unsafe stat(path, &status) != 0 {
            let code = errno
            let reason = code == ENOENT || code == ENOTDIR ? "image missing: \(path)" : "\(path): \(errnoText(code))"
            return reason + (isOpen ? "; the next guest gets the file that is open, until the disk is detached" : "")
        }
        // Of a disk that is closed, the name is all that counts.
        if !isOpen || StorageIdentity(status) == identity { return nil }
        return "another file is at \(path) now; the next guest gets the one that is open: detach and attach the disk"
    }
}

/// Looks at images. ``begin(_:)``, ``take()`` on one thread.
final class ImageLook {
    /// What is to be looked at: the images of a disk, and whether it has them open.
    typealias Question = (address: VBDAddress, images: [ServedImage], isOpen: Bool)
    /// How long somebody waits for the answer, in ns.
    static let timeLimit: UInt64 = 300 * RestartPolicy.millisecond

    private struct Work: Sendable {
        var questions: [Question] = []
        /// The newest round of questions, and the last that is answered.
        var asked: UInt64 = 0
        var answered: UInt64 = 0
        var found: [VBDAddress: String] = [:]
    }

    /// What both threads know.
    private final class Shared: Sendable {
        let work = Mutex(Work())
        let wanted = Semaphore()
        let done: Descriptor
        init(_ done: Descriptor) { self.done = done }
    }

    private let shared: Shared

    /// Starts the thread, which lives as long as the process.
    init() throws(OperationError) {
        let shared = Shared(try Descriptor.event())
        self.shared = shared
        pthread_detach(try startThread(named: "images") { ImageLook.run(shared) })
    }

    /// Readable when a round is answered.
    var descriptor: Int32 { shared.done.raw }

    /// Begins a round, which takes the place of one that is not begun yet; its number.
    func begin(_ questions: [Question]) -> UInt64 {
        let round = shared.work.withLock { work in
            work.questions = questions
            work.asked += 1
            return work.asked
        }
        shared.wanted.signal()
        return round
    }

    /// The last round that is answered, and what it found.
    func take() -> (round: UInt64, found: [VBDAddress: String]) {
        shared.done.drain()
        return shared.work.withLock { ($0.answered, $0.found) }
    }

    private static func run(_ shared: Shared) {
        while true {
            shared.wanted.wait()
            answer(shared)
        }
    }

    private static func answer(_ shared: Shared) {
        let (round, questions) = shared.work.withLock { ($0.asked, $0.questions) }
        var found: [VBDAddress: String] = [:]
        for question in questions {
            found[question.address] = question.images.lazy.compactMap { $0.problem(isOpen: question.isOpen) }.first
        }
        shared.work.withLock { work in
            work.answered = round
            work.found = found
        }
        shared.done.signal()
    }
}
