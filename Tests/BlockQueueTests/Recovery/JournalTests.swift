// SPDX-License-Identifier: BSD-2-Clause
// Journals that are not what they should be: of others, cut off, changed at random.
import StorageKeeping
import Base
import Blkif
import CLinux
import Glibc
import Memory
import Support
import TestSupport
import Testing
import XenBus

@testable import BlockQueue
@testable import PluginHost
@testable import XBBHost

@Suite("The journal")
struct JournalTests {
    private static func image(_ device: UInt64, _ number: UInt64) -> StorageIdentity {
        StorageIdentity(device: device, number: number)
    }

    private static func connection(_ change: (inout JournalConnection) -> Void = { _ in }) -> JournalConnection {
        var connection = JournalConnection(
            domain: 3, isNarrow: false, isReadOnly: false,
            rings: [
                FrontendRing(pageReferences: [8, 9, 10, 11], eventChannel: 17),
                FrontendRing(pageReferences: [12, 13, 14, 15], eventChannel: 18),
            ], entries: 128, storage: [image(7, 4711)], format: "raw", plugin: "file")
        change(&connection)
        return connection
    }

    /// A file in a directory of its own, which goes with it.
    private final class TemporaryFile {
        let path: String
        private let directory: String
        init() throws {
            var template = Array("/tmp/xbb-journal-XXXXXX".utf8CString)
            _ = try #require(mkdtemp(&template))
            directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
            path = directory + "/journal"
        }
        deinit {
            unlink(path)
            rmdir(directory)
        }
    }

    /// Why a journal is not adopted; nil if it is.
    private func problem(_ file: JournalFile, _ connection: JournalConnection = connection()) -> String? {
        do {
            _ = try file.adopt(connection)
            return nil
        } catch {
            return error.description
        }
    }

    @Test("what was agreed on is found again, and whatever is not the same is named")
    func connection() throws {
        let file = try TemporaryFile()
        let written = try JournalFile(path: file.path)
        _ = try written.begin(Self.connection())
        let read = try JournalFile(path: file.path)
        #expect(problem(read) == "it was not completed")
        written.complete()
        #expect(problem(read) == nil)
        #expect(read.queueCount == 2)
        let cases: [(String, (inout JournalConnection) -> Void)] = [
            ("it is of another connection", { $0.domain = 4 }),
            ("it is of another connection", { $0.isNarrow = true }),
            ("it is of another connection", { $0.rings.removeLast() }),
            ("it is of another connection", { $0.entries = 64 }),
            (
                "it is of another ring",
                { $0.rings[1] = FrontendRing(pageReferences: [12, 13, 14, 16], eventChannel: 18) }
            ),
            (
                "it is of another ring",
                { $0.rings[0] = FrontendRing(pageReferences: [8, 9, 10, 11], eventChannel: 19) }
            ),
            ("another image stands in the place of the one that was served", { $0.storage = [Self.image(7, 1)] }),
            ("another image stands in the place of the one that was served", { $0.storage = [Self.image(1, 4711)] }),
            ("the image was served as another format, or by another plugin", { $0.format = "qcow2" }),
            ("the image was served as another format, or by another plugin", { $0.plugin = "rawdisk" }),
            ("the disk was writable", { $0.isReadOnly = true }),
        ]
        for (text, change) in cases {
            #expect(problem(read, Self.connection(change)) == text)
        }
    }

    @Test("another image anywhere in the chain is found, whatever else the journal says")
    func chain() throws {
        let file = try TemporaryFile()
        let served = [Self.image(7, 4711), Self.image(7, 4712), Self.image(0, 0x802)]
        let written = try JournalFile(path: file.path)
        let pages = try written.begin(Self.connection { $0.storage = served }).pages
        func isSame(_ storage: [StorageIdentity]) throws -> Bool {
            let read = try JournalFile(path: file.path)
            do {
                try read.compareStorage(
                    Self.connection {
                        $0.storage = storage; $0.domain = 99
                    })
                return true
            } catch {
                #expect(error.description.contains("another image stands in the place of the one that was served"))
                return false
            }
        }
        #expect(try isSame(served), "also before it is complete")
        for index in served.indices {
            var exchanged = served
            exchanged[index] = Self.image(7, 4799)
            #expect(try !isSame(exchanged), "\(index)")
            exchanged[index] = Self.image(8, served[index].number)
            #expect(try !isSame(exchanged), "\(index)")
        }
        #expect(try !isSame(Array(served.prefix(2))))
        #expect(try !isSame(served + [Self.image(7, 4713)]))
        #expect(try !isSame([]))
        // Workers before this one noted the attached image alone.
        _ = try written.begin(Self.connection { $0.storage = served })
        pages.store(0, at: JournalLayout.chainCountOffset)
        #expect(try isSame(Array(served.prefix(1))))
        #expect(try !isSame([Self.image(7, 1)]))
    }

    @Test("a file of any other length is refused, and nothing is read beyond its end")
    func lengths() throws {
        let file = try TemporaryFile()
        let written = try JournalFile(path: file.path)
        let whole = try written.begin(Self.connection()).pages.byteCount
        written.complete()
        for length in [0, 1, 4095, 4096, 4097, 8192, whole - 4096, whole - 1, whole + 1, whole + 4096, 1 << 30] {
            #expect(truncate(file.path, off_t(length)) == 0)
            let read = try JournalFile(path: file.path)
            _ = read.queueCount
            #expect(problem(read) != nil, "\(length)")
        }
    }

    @Test("changed bytes of the first page are found, wherever they count")
    func firstPage() throws {
        let file = try TemporaryFile()
        let written = try JournalFile(path: file.path)
        let pages = try written.begin(Self.connection()).pages
        written.complete()
        var random = SplitMix64(seed: 1)
        for offset in stride(from: 0, to: 144, by: 4) {
            let good = pages.load(at: offset)
            // Of the flags one bit is known; what stands between the fields is nobody's.
            if [60].contains(offset) { continue }
            pages.store(good ^ (offset == 56 ? 1 : UInt32(truncatingIfNeeded: random.next() | 1)), at: offset)
            let read = try JournalFile(path: file.path)
            _ = read.queueCount
            #expect(problem(read) != nil, "\(offset)")
            pages.store(good, at: offset)
        }
    }

    @Test("a queue's part full of anything gives requests of the ring, or a reason")
    func fuzz() throws {
        var random = SplitMix64(seed: 4)
        var understood = 0
        for round in 0..<1000 {
            let rig = try EngineRig { $0.startIndex = UInt32(truncatingIfNeeded: random.next()) }
            for place in 0..<20 { _ = place % 2 == 0 ? rig.read(place * 16, 8) : rig.write(place * 16, 8) }
            rig.settle()
            for _ in 0..<(random.next() % 8) { rig.plugin.complete(Int(random.next() % UInt64(rig.plugin.held.count))) }
            rig.turn(steps: Int(random.next() % 8))
            let pages = rig.journal.queue(0)
            let changes = round % 3 == 0 ? 1 : Int(random.next() % 200)
            for _ in 0..<changes {
                // Half of them near the numbers that decide, half of them anywhere.
                var offset = Int(random.next() % UInt64(pages.byteCount / 4)) * 4
                if random.next() % 2 == 0 {
                    offset = JournalLayout.slot(Int32(random.next() % 32)) + Int(random.next() % 4) * 4
                }
                let bit = UInt32(1) << UInt32(random.next() % 32)
                let isFlip = random.next() % 2 == 0
                pages.store(
                    isFlip ? pages.load(at: offset) ^ bit : UInt32(truncatingIfNeeded: random.next()), at: offset)
            }
            do {
                try rig.succeed(.crashed("signal 11"))
            } catch is OperationError {
                continue
            }
            understood += 1
            #expect(rig.engine.ring.outstanding == rig.engine.replays.count)
            // Whatever the requests say now: they are answered, and that is all. Their numbers may not be the guest's.
            rig.run()
            #expect(rig.isIdle && rig.use == EngineRig.Use())
        }
        #expect(understood > 100)
    }

    @Test("how a predecessor ended is read from the command line")
    func predecessor() {
        #expect(Predecessor("unknown") == .unknown)
        #expect(Predecessor("handed-over") == .handedOver)
        #expect(Predecessor("killed:signal 9") == .killed("signal 9"))
        #expect(Predecessor("killed:exit status 1") == .ended("exit status 1"))
        #expect(Predecessor("crashed:signal 6: a: b") == .crashed("signal 6: a: b"))
        #expect(Predecessor("crashed:exit status 0 unasked") == .crashed("exit status 0 unasked"))
        for text in ["", "killed", "crashed", "handed-over:", "Unknown"] { #expect(Predecessor(text) == nil) }
        #expect(Predecessor("killed:exit status 1")?.text == "ended (exit status 1)")
        #expect(Predecessor("killed:signal 9")?.text == "was killed (signal 9)")
    }
}
