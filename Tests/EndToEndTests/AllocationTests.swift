// SPDX-License-Identifier: BSD-2-Clause
// A worker in steady state asks for no memory for a request.
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct AllocationTests {
        /// The counter is a library in front of malloc, so that it counts what Swift, Glibc and plugins take.
        @Test func requestsTakeNoMemory() throws {
            let lab = try Lab()
            let counter = try AllocationCounter(in: lab.directory)
            let disk = try lab.attach(51712, .plugin("null"), environment: counter.environment)
            let device = try disk.connect { $0.ringPages = 8 }
            // The first load fills what grows once: lazy metadata, the log's buffers, the threads' arenas.
            func load(_ count: UInt64) throws -> UInt64 {
                let before = try counter.count()
                let report = try disk.load(device) {
                    $0.count = count
                    $0.depth = 64
                    $0.maxBlockSize = 4096
                    $0.verify = false
                }
                #expect(report.isGood, "\(report.text)")
                return try counter.count() - before
            }
            let warm = try load(2000)
            let few = try load(2000)
            let many = try load(20000)
            // Without optimisation a turn of the queue makes one, of up to 64 requests; how many it finds is the machine's affair.
            // `make bench` shows none with optimisation.
            #expect(
                many < 20000 / 4, "20000 requests made \(many) allocations, 2000 made \(few), the first 2000 \(warm)")
            try device.close()
            try lab.finish()
        }
    }
}

/// Counts the allocations of the processes that are started with its environment.
struct AllocationCounter {
    let environment: [String]
    private let cell: String

    init(in directory: String) throws {
        cell = "\(directory)/mallocs"
        try Data(count: 8).write(to: URL(fileURLWithPath: cell))
        let library = "\(directory)/malloc-count.so"
        try LibxlLab.shell("gcc -O2 -shared -fPIC -o '\(library)' '\(packageDirectory)/scripts/malloc-count.c'")
        environment = ["LD_PRELOAD=\(library)", "XBB_MALLOC_COUNT=\(cell)"]
    }

    /// Allocations so far.
    func count() throws -> UInt64 {
        let data = try Data(contentsOf: URL(fileURLWithPath: cell))
        guard data.count == 8 else { throw LabError("\(cell) has \(data.count) bytes") }
        return data.reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
}
