// SPDX-License-Identifier: BSD-2-Clause
// Images of disks that no guest is connected to: they are looked at when somebody asks, so that it is known before the guest
// comes that it would find no disk.
import Base
import CLinux
import StorageKeeping
import Support

/// Those who wait for a round of ``ImageLook``.
struct ImageWait {
    let round: UInt64
    /// When they are answered all the same, in ns of CLOCK_MONOTONIC.
    let deadline: UInt64
    let completion: () -> Void
}

extension Supervisor {
    /// Calls `completion` when the images are looked at, or when that takes too long: at once where no disk waits for its guest.
    func lookAtImages(_ completion: @escaping () -> Void) {
        let questions = records.values.compactMap { record -> ImageLook.Question? in
            guard !record.images.isEmpty, record.supervision.node?.state != .connected else { return nil }
            return (record.address, record.images, record.storage != nil)
        }
        guard !questions.isEmpty, let look = imageLook() else {
            imageProblems = [:]
            return completion()
        }
        imageWaits.append(
            ImageWait(
                round: look.begin(questions), deadline: clinux_monotonic_ns() &+ ImageLook.timeLimit,
                completion: completion))
    }

    private func imageLook() -> ImageLook? {
        if let images { return images }
        do throws(OperationError) {
            let made = try ImageLook()
            try loop.add(made.descriptor) { [unowned self] in takeImages() }
            images = made
            return made
        } catch {
            log.warning("images of disks without a guest are not looked at: \(error)")
            return nil
        }
    }

    private func takeImages() {
        guard let answer = images?.take() else { return }
        imageProblems = answer.found
        endWaits { $0.round <= answer.round }
    }

    /// Answers those who have waited for too long, with what was found last.
    func expireImages(now: UInt64) { endWaits { $0.deadline <= now } }

    private func endWaits(where isOver: (ImageWait) -> Bool) {
        let over = imageWaits.filter(isOver)
        imageWaits.removeAll(where: isOver)
        for wait in over { wait.completion() }
    }

    /// What is wrong with the images of a disk that waits for its guest; nil: nothing that is known.
    func imageProblem(of record: Record) -> String? {
        record.supervision.node?.state == .connected ? nil : imageProblems[record.address]
    }
}
