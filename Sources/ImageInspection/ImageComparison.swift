// SPDX-License-Identifier: BSD-2-Clause
// Reads an image through two readers of its plugin: `extension("xbb.draft.compare/1")`, docs/plugin-abi.md.
import PluginHost
import Base
import CLinux
import Glibc
import PluginAPI
import Support

extension ImageExamination {
    /// Memory that a comparison may use, in bytes beyond what the process has with its plugin loaded.
    static let comparisonMemory: UInt64 = 256 << 20
    /// Seconds of processor time: as long as a large image takes.
    static let comparisonSeconds: UInt64 = 30 * 86400

    /// What two readers of the image say, as `format`, else as the format that it was served as. Confines this process. With a
    /// terminal at standard error it shows there how far it is. Ends when the process that started this one has.
    public func compare(format asked: String?) throws(OperationError) -> JSON {
        let image = try OpenImage(path)
        let recorded = recordedFormat()
        let libraries: [PluginLibrary]
        let known: String?
        if let asked { known = asked } else { known = try recorded.get() }
        if let known {
            libraries = known == "raw" ? [] : [try library(for: known)]
        } else {
            libraries = try load { $0.probes || $0.inspects }
        }
        // Before the process loses the right to ask.
        let progress = isatty(2) == 1 ? ComparisonProgress() : nil
        try confine(memory: Self.comparisonMemory, seconds: Self.comparisonSeconds)
        let format = if let known { known } else { try choose(image.matches(libraries), image).format }
        guard let library = libraries.first(where: { $0.formats.contains(format) }) else {
            throw OperationError(.open, "\(path) is \(format): there is nothing to be read in two ways")
        }
        let comparison = try Comparison.run(library, image.descriptor, format: format, progress)
        return .object([
            ("image", .string(path)), ("format", .string(format)), ("file_size", .integer(image.byteCount)),
            ("comparison", comparison.json),
        ])
    }
}

/// Shows on standard error how far a comparison is.
private final class ComparisonProgress {
    private var next: UInt64 = 0
    private var isShown = false

    func show(_ done: UInt64, of total: UInt64) {
        let now = clinux_monotonic_ns()
        guard now >= next else { return }
        // What is over within a second needs no line.
        if next != 0 {
            isShown = true
            print("\rcompared \(done >> 20) of \(total >> 20) MiB (\(total == 0 ? 100 : done / max(total / 100, 1)) %)")
        }
        next = now &+ 1_000_000_000
    }

    /// The line is gone.
    func end() { if isShown { print("\r\u{1b}[K") } }

    private func print(_ text: String) { unsafe _ = text.withCString { unsafe write(2, $0, strlen($0)) } }
}

/// What was found. Bounded, as an image decides how much that is.
private final class Comparison {
    /// Ranges that are told one by one.
    private static let most = 500

    private var differences: [JSON] = []
    private var faults: [JSON] = []
    /// Of each kind: ranges and bytes.
    private var totals: (differences: (UInt64, UInt64), faults: (UInt64, UInt64)) = ((0, 0), (0, 0))
    private var skipped: [(reason: String, bytes: UInt64)] = []
    private var unreadable: String?
    /// How far the disk was gone through, and how much of that was not compared, in bytes.
    private var (position, passedOver): (UInt64, UInt64) = (0, 0)
    private var last: (kind: UInt32, end: UInt64, words: String)?
    private let progress: ComparisonProgress?
    private let parent = getppid()

    private init(_ progress: ComparisonProgress?) { self.progress = progress }

    private typealias Report =
        @convention(c) (
            UnsafeMutableRawPointer?, UInt32, UInt64, UInt64, UnsafePointer<CChar>?, UnsafePointer<CChar>?
        ) -> Int32
    private typealias Function =
        @convention(c) (
            UnsafePointer<xbb_open>?, Report?, UnsafeMutableRawPointer?, UnsafeMutablePointer<xbb_error>?
        ) -> Int32
    /// struct { uint32_t struct_size; uint32_t reserved; function }, which lives as long as the plugin.
    @safe
    private struct Table {
        let size: UInt32
        let reserved: UInt32
        let compare: Function
    }

    static func run(
        _ library: PluginLibrary, _ descriptor: Int32, format: String, _ progress: ComparisonProgress?
    ) throws(OperationError) -> Comparison {
        guard library.canExtend, let found = unsafe library.table.extension?("xbb.draft.compare/1") else {
            throw OperationError(.open, "plugin '\(library.name)' has no second reader to compare with")
        }
        let table = unsafe found.assumingMemoryBound(to: Table.self)
        guard unsafe table.pointee.size >= MemoryLayout<Table>.size else {
            throw OperationError(.open, "plugin '\(library.name)' has no second reader that is known here")
        }
        let comparison = Comparison(progress)
        var failure = xbb_error()
        let options = try ImageDescription.optionValues(library)
        let result = unsafe withOpenRequest(
            format, label: format, flags: Int(XBB_OPEN_RDONLY), file: descriptor, options: options, host: nil
        ) { request in
            unsafe table.pointee.compare(
                request,
                { argument, kind, offset, length, first, second in
                    guard let argument = unsafe argument else { return 1 }
                    let comparison = unsafe Unmanaged<Comparison>.fromOpaque(argument).takeUnretainedValue()
                    return comparison.add(
                        kind, offset, length, unsafe first.map { unsafe String(cString: $0) } ?? "",
                        unsafe second.map { unsafe String(cString: $0) } ?? "") ? 0 : 1
                }, Unmanaged.passUnretained(comparison).toOpaque(), &failure)
        }
        progress?.end()
        if result != 0 { throw OperationError(failure, result, "plugin '\(library.name)'") }
        guard getppid() == comparison.parent else {
            throw OperationError(.open, "nobody waits for the answer any more")
        }
        return comparison
    }

    /// False: no more.
    private func add(_ kind: UInt32, _ offset: UInt64, _ length: UInt64, _ first: String, _ second: String) -> Bool {
        switch kind {
        case 1:
            position = offset
            progress?.show(offset, of: length)
            return getppid() == parent
        case 2:
            Self.note(&differences, &totals.differences, isJoined(kind, offset, length, ""), length) { bytes in
                .object([
                    ("offset", .integer(offset)), ("length", .integer(bytes)), ("sector", .integer(offset / 512)),
                    ("this_reader", Self.text(first)), ("second_reader", Self.text(second)),
                ])
            }
        case 3:
            Self.note(&faults, &totals.faults, isJoined(kind, offset, length, first), length) { bytes in
                .object([
                    ("offset", .integer(offset)), ("length", .integer(bytes)), ("sector", .integer(offset / 512)),
                    ("fault", Self.text(first)), ("words", Self.text(second)),
                ])
            }
        case 4:
            passedOver &+= length
            if let index = skipped.firstIndex(where: { $0.reason == first }) {
                skipped[index].bytes &+= length
            } else if skipped.count < 32 {
                skipped.append((first, length))
            }
        case 5: unreadable = first
        default: break
        }
        return true
    }

    private static func text(_ words: String) -> JSON { .string(String(words.prefix(256))) }

    /// The range goes on where the one before ended, in the same way.
    private func isJoined(_ kind: UInt32, _ offset: UInt64, _ length: UInt64, _ words: String) -> Bool {
        defer { last = (kind, offset &+ length, words) }
        guard let last else { return false }
        return last.kind == kind && last.end == offset && last.words == words
    }

    /// One more range, or more of the last one.
    private static func note(
        _ list: inout [JSON], _ total: inout (UInt64, UInt64), _ isJoined: Bool, _ length: UInt64,
        _ make: (_ bytes: UInt64) -> JSON
    ) {
        total.1 &+= length
        guard isJoined else {
            total.0 += 1
            if list.count < most { list.append(make(length)) }
            return
        }
        guard total.0 <= UInt64(most), let before = list.last?["length"]?.unsigned else { return }
        let members = (list.last?.members ?? []).map { member in
            member.name == "length" ? (member.name, .integer(before &+ length)) : (member.name, member.value)
        }
        list[list.count - 1] = .object(members)
    }

    var json: JSON {
        let verdict =
            unreadable != nil
            ? "unreadable" : totals.differences.0 > 0 ? "differs" : totals.faults.0 > 0 ? "known-faults" : "same"
        return .object([
            ("verdict", .string(verdict)), ("reason", .text(unreadable)),
            ("compared", .integer(position - min(passedOver, position))),
            ("difference_count", .integer(totals.differences.0)), ("difference_bytes", .integer(totals.differences.1)),
            ("differences", .array(differences)), ("known_fault_count", .integer(totals.faults.0)),
            ("known_fault_bytes", .integer(totals.faults.1)), ("known_faults", .array(faults)),
            (
                "not_compared",
                .array(skipped.map { .object([("reason", Self.text($0.reason)), ("bytes", .integer($0.bytes))]) })
            ),
        ])
    }
}
