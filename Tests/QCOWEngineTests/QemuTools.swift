// SPDX-License-Identifier: BSD-2-Clause
// qemu-img and qemu-io: they make images, and they are the judges that know nothing of our tests.
import Foundation
import Synchronization

/// A folder in memory that vanishes with its owner.
final class TestFolder: Sendable {
    let path: String

    init() throws {
        let base = FileManager.default.fileExists(atPath: "/dev/shm") ? "/dev/shm" : NSTemporaryDirectory()
        path = "\(base)/xbb-engine-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        let path = path
        Self.open.withLock { _ = $0.insert(path) }
        _ = Self.cleansUp
    }

    deinit {
        try? FileManager.default.removeItem(atPath: path)
        let path = path
        Self.open.withLock { _ = $0.remove(path) }
    }

    /// Folders of images that are made once for all tests live as long as the process.
    private static let open = Mutex<Set<String>>([])
    private static let cleansUp: Bool = {
        atexit { TestFolder.open.withLock { $0 }.forEach { try? FileManager.default.removeItem(atPath: $0) } }
        return true
    }()

    /// A name in it.
    func file(_ name: String) -> String { "\(path)/\(name)" }
}

/// Commands of the shell.
enum Shell {
    /// What a command prints; an error if it fails.
    @discardableResult
    static func run(_ command: String) throws -> String {
        guard let pipe = popen("(\(command)) 2>&1", "r") else { throw SimulationError("no shell") }
        var output: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while case let count = fread(&chunk, 1, chunk.count, pipe), count > 0 { output += chunk[..<count] }
        let words = String(decoding: output, as: UTF8.self)
        let status = pclose(pipe)
        guard status == 0 else { throw SimulationError("\(command.prefix(300)): status \(status): \(words)") }
        return words
    }
}

/// Asks QEMU about many states at once: a process for each takes longer than the rest of a test.
final class QemuJury {
    /// What QEMU says of a state.
    struct Verdict {
        let corruptions: Int
        let leaks: Int
        /// It could not check, or not read.
        let errors: String?
        /// What it reads; nil where that was not asked.
        let content: DiskContent?
    }

    private let folder: TestFolder
    private var waiting: [(name: String, reads: Bool, take: (Verdict) -> Void)] = []
    private var number = 0
    /// States that it judged.
    private(set) var judged = 0

    /// A jury that works in a folder, where the backing files of the images are too.
    init(_ folder: TestFolder) { self.folder = folder }

    /// Puts a state before the jury; `take` gets the verdict, at the latest in ``decide()``.
    func ask(_ image: ByteImage, reads: Bool = true, _ take: @escaping (Verdict) -> Void) throws {
        number += 1
        let name = "jury\(number)"
        try image.save(folder.file(name))
        waiting.append((name, reads, take))
        if waiting.count >= 24 { try decide() }
    }

    /// Judges all that waits.
    func decide() throws {
        guard !waiting.isEmpty else { return }
        let names = waiting.map { "\($0.name) \($0.reads ? 1 : 0)" }.joined(separator: "\n")
        try Shell.run(
            """
            cd \(folder.path) && printf '%s\\n' '\(names)' | xargs -P 2 -n 2 sh -c '
            qemu-img check -f qcow2 --output=json $0 >$0.json 2>$0.err
            if [ $1 = 1 ]; then qemu-img convert -f qcow2 -O raw $0 $0.raw 2>>$0.err || echo unreadable >>$0.err; fi
            exit 0'
            """)
        for state in waiting {
            judged += 1
            state.take(try verdict(state.name, state.reads))
            for suffix in ["", ".json", ".err", ".raw"] { unlink(folder.file(state.name + suffix)) }
        }
        waiting = []
    }

    private func verdict(_ name: String, _ reads: Bool) throws -> Verdict {
        let data = try Data(contentsOf: URL(fileURLWithPath: folder.file("\(name).json")))
        let said = (try? String(contentsOfFile: folder.file("\(name).err"), encoding: .utf8)) ?? ""
        guard let report = try? JSONSerialization.jsonObject(with: data) as? [String: Any] else {
            return Verdict(corruptions: 0, leaks: 0, errors: "qemu-img check: \(said)", content: nil)
        }
        let errors = report["check-errors"] as? Int ?? 0
        var content: DiskContent?
        if reads, let raw = try? ByteImage(contentsOf: folder.file("\(name).raw")) { content = DiskContent(raw: raw) }
        let isUnreadable = reads && content == nil || said.contains("unreadable")
        return Verdict(
            corruptions: report["corruptions"] as? Int ?? 0, leaks: report["leaks"] as? Int ?? 0,
            errors: errors > 0 || isUnreadable ? "\(errors) errors of the check; \(said)" : nil, content: content)
    }
}
