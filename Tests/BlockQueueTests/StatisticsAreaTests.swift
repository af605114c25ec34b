// SPDX-License-Identifier: BSD-2-Clause
// Statistics that outlive their process, and what is made of a file that somebody damaged.
import Base
import Glibc
import TestSupport
import Testing

@testable import BlockQueue

@Suite("Statistics of successors")
struct StatisticsAreaTests {
    /// A file of its own for each test.
    private final class Place {
        let path: String
        init() {
            var template = Array("/tmp/xbb-stats.XXXXXX".utf8CString)
            close(mkstemp(&template))
            path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
        deinit { unlink(path) }

        func patch(_ offset: Int, _ bytes: [UInt8]) {
            let file = open(path, O_WRONLY)
            pwrite(file, bytes, bytes.count, off_t(offset))
            close(file)
        }
    }

    /// A disk with two queues that counted something.
    private func fill(_ place: Place, identity: UInt64 = 7) throws {
        let area = try StatisticsArea(path: place.path)
        try area.begin(identity: identity)
        for queue in 0..<2 {
            let statistics = area.queue(queue)
            statistics.cells.add(.reqs_received, 110)
            statistics.cells.add(.reqs_completed, 100)
            statistics.cells.count(.read, 8, nanoseconds: 5000)
            statistics.cells.count(.write, error: ENOSPC)
            statistics.setLast(
                StorageFailure(operation: .write, code: ENOSPC, firstSector: 8, sectorCount: 8), time: 1000)
        }
        area.store(changes: [("flush-interval", "9")])
        area.store(changes: [("flush-interval", "10"), ("on-enospc", "stop")])
    }

    private func adopt(_ place: Place, identity: UInt64 = 7) throws -> StatisticsArea {
        let area = try StatisticsArea(path: place.path)
        try area.adopt(identity: identity)
        return area
    }

    @Test("a successor goes on with counters, histograms, errors and changes")
    func goesOn() throws {
        let place = Place()
        try fill(place)
        let area = try adopt(place)
        #expect(area.queueCount == 2)
        for queue in 0..<2 {
            let statistics = area.queue(queue)
            #expect(statistics.value(.reqs_completed) == 100)
            // Those that were on their way are counted again when they are done again.
            #expect(statistics.value(.reqs_received) == 100)
            #expect(statistics.value(.read_requests) == 1 && statistics.histogram(.read).total == 1)
            #expect(statistics.errors == [StorageErrorCount(operation: .write, code: ENOSPC, count: 1)])
            #expect(statistics.lastError?.text == "write of 4096 bytes at sector 8: No space left on device (ENOSPC)")
        }
        #expect(area.changes.map { "\($0.name)=\($0.value)" } == ["flush-interval=10", "on-enospc=stop"])
        #expect(area.queue(2).value(.reqs_completed) == 0 && area.queueCount == 3)
    }

    @Test("those of another disk, and of one that is over, are not gone on with")
    func anotherDisk() throws {
        let place = Place()
        try fill(place)
        #expect(throws: OperationError.self) { try adopt(place, identity: 8) }
        try adopt(place).end()
        #expect(throws: OperationError.self) { try adopt(place) }
        let area = try StatisticsArea(path: place.path)
        try area.begin(identity: 7)
        #expect(area.queueCount == 0 && area.queue(0).value(.reqs_completed) == 0 && area.changes.isEmpty)
    }

    @Test("a version with other counters finds those that it knows by their names")
    func otherCounters() throws {
        let place = Place()
        try fill(place)
        // An older version: no counter had the third one's place.
        var names = QueueCounter.allCases.map { "\($0)" }
        names.remove(at: 2)
        names.append("of_the_past")
        let text = Array((names.joined(separator: "\n") + "\n").utf8)
        place.patch(
            StatisticsLayout.namesOffset, withUnsafeBytes(of: UInt32(text.count).littleEndian) { Array($0) } + text)
        let expected = try adopt(place).queue(0)
        #expect(expected.value(.reqs_received) == 100 && expected.value(.reqs_completed) == 100)
        // What stood in the fourth place is the fifth's now, and what nobody counted then is zero.
        #expect(expected.value(QueueCounter.allCases[2]) == 100, "made from what was completed")
        #expect(expected.value(.read_requests) == 0 || expected.value(.read_requests) == 1)
        #expect(try adopt(place).queue(0).value(.reqs_completed) == 100)
    }

    @Test("a number that no counter reaches is damage: it begins at zero")
    func impossible() throws {
        let place = Place()
        try fill(place)
        place.patch(StatisticsLayout.pageSize + 8 * 20, [UInt8](repeating: 0xff, count: 8))
        #expect(throws: OperationError.self) { try adopt(place) }
    }

    @Test("any bytes in the file are refused or read, and nothing comes of it")
    func anyBytes() throws {
        var random = SplitMix64(seed: 11)
        for round in 0..<400 {
            let place = Place()
            try fill(place)
            let size = StatisticsLayout.fileSize(queues: 2)
            if round % 4 == 0 {
                truncate(place.path, off_t(Int.random(in: 0..<size, using: &random)))
            } else {
                for _ in 0..<Int.random(in: 1...8, using: &random) {
                    let end = round % 4 == 1 ? StatisticsLayout.pageSize : size
                    place.patch(
                        Int.random(in: 0..<end - 8, using: &random),
                        (0..<8).map { _ in UInt8.random(in: 0...255, using: &random) })
                }
            }
            let area = try StatisticsArea(path: place.path)
            if (try? area.adopt(identity: 7)) == nil { try area.begin(identity: 7) }
            for queue in 0..<area.queueCount {
                let statistics = area.queue(queue)
                for counter in QueueCounter.allCases { _ = statistics.value(counter) }
                for latency in LatencyClass.allCases { _ = statistics.histogram(latency).percentile(0.999) }
                _ = statistics.errors.count
                _ = statistics.lastError?.text
            }
            _ = area.changes
        }
    }

    @Test("a histogram of any counts has percentiles")
    func percentiles() {
        var histogram = LatencyHistogram()
        histogram.counts[3] = .max
        #expect(histogram.percentile(1) == 3)
        histogram.counts[4] = .max
        _ = histogram.percentile(0.999)
    }

    @Test("times are summed, and a sum may be any number, also for a successor") func sums() throws {
        let place = Place()
        try fill(place)
        let statistics = try adopt(place).queue(0)
        withExtendedLifetime(statistics) {
            statistics.cells.count(.write, 8, nanoseconds: 1000)
            statistics.cells.count(.writeBarrier, 8, nanoseconds: 500)
            statistics.cells.count(.flush, 0, nanoseconds: 1 << 60)
        }
        let successor = try adopt(place).queue(0)
        #expect(successor.value(.read_ns) == 5000 && successor.value(.write_ns) == 1500)
        #expect(successor.value(.flush_ns) == 1 << 60 && successor.value(.discard_ns) == 0)
    }

    @Test("counts below powers of two are exact") func countsBelow() {
        let statistics = QueueStatistics()
        let latencies: [UInt64] = [0, 3, 16_383, 16_384, 20_000, 32_767, 32_768, 1 << 33, .max]
        for latency in latencies { statistics.cells.record(.read, nanoseconds: latency) }
        let counts = statistics.histogram(.read).counts(below: 2...40)
        for (index, power) in (2...40).enumerated() {
            #expect(counts[index] == UInt64(latencies.count { $0 < 1 << UInt64(power) }), "2^\(power)")
        }
    }
}
