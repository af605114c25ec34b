// SPDX-License-Identifier: BSD-2-Clause
// The parts of the frontend that need nothing else: names, checksums, histograms, patterns, JSON.
import TestSupport
import Testing

@testable import Blkfront
import Support

@Suite struct PartsTests {
    @Test(arguments: [
        ("xvda", 51712), ("xvdb", 51728), ("xvda1", 51713), ("xvdp", 51952), ("xvdp15", 51967),
        ("xvdq", 1 << 28 | 16 << 8), ("xvdaa", 1 << 28 | 26 << 8), ("xvda16", 1 << 28 | 16), ("sda", 2048),
        ("sdb3", 2067), ("hda", 768), ("hdb1", 833), ("hdc", 5632), ("d0", 51712), ("d16p2", 1 << 28 | 16 << 8 | 2),
        ("51712", 51712), ("0xca00", 51712), ("0", 0),
    ])
    func namesOfDisks(name: String, number: Int) throws {
        #expect(DeviceName(name)?.number == UInt32(number))
    }

    @Test(arguments: [
        "", "xvd", "xvd1", "xvda0", "xvda256", "xvdA", "xvda1x", "hde", "sdq", "d", "dp1", "-1", "vda",
        "xvdzzzzzzzzzz", "0x", "4294967296", "xvda99999999999999999999", "d1048576",
    ])
    func whatIsNoDisk(name: String) {
        #expect(DeviceName(name) == nil)
    }

    @Test func namesComeBackFromNumbers() {
        for name in ["xvda", "xvdp15", "xvdq", "xvdzz", "xvdaaa", "xvda16"] {
            #expect(DeviceName(name)?.description == name)
        }
        #expect(DeviceName(number: 2048).description == "2048")
    }

    @Test(
        arguments: [
            ("", 0), ("123456789", 0xe306_9283), ("a", 0xc1d0_4330),
            ("The quick brown fox jumps over the lazy dog", 0x2262_0404),
        ] as [(String, UInt32)])
    func checksumsOfKnownTexts(text: String, sum: UInt32) {
        let bytes = [UInt8](text.utf8)
        #expect(bytes.withUnsafeBytes { CRC32C.checksum($0) } == sum)
        // In two parts, at every place.
        for cut in 0...bytes.count {
            let first = bytes[..<cut].withUnsafeBytes { CRC32C.checksum($0) }
            #expect(bytes[cut...].withUnsafeBytes { CRC32C.checksum($0, seed: first) } == sum)
        }
    }

    @Test func checksumsOfISCSI() {
        // RFC 3720 B.4
        #expect([UInt8](repeating: 0, count: 32).withUnsafeBytes { CRC32C.checksum($0) } == 0x8a91_36aa)
        #expect([UInt8](repeating: 0xff, count: 32).withUnsafeBytes { CRC32C.checksum($0) } == 0x62a8_ab43)
        #expect([UInt8](0..<32).withUnsafeBytes { CRC32C.checksum($0) } == 0x46dd_794e)
    }

    @Test func histogramsAreWithinTheirError() {
        var random = SplitMix64(seed: 7)
        var histogram = LatencyHistogram()
        var values: [UInt64] = []
        for _ in 0..<10_000 {
            let value = random.next() >> (10 + random.below(50))
            values.append(value)
            histogram.record(value)
        }
        values.sort()
        #expect(histogram.count == 10_000)
        #expect(histogram.minimum == values[0] && histogram.maximum == values[9999])
        for share in [0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1] {
            let exact = values[max(0, Int((share * 10_000).rounded(.up)) - 1)]
            let found = histogram.percentile(share)
            #expect(found >= exact && Double(found) <= Double(exact) * 33 / 32 + 1, "\(share)")
        }
        var sum = LatencyHistogram()
        sum.add(histogram)
        sum.add(histogram)
        #expect(sum.count == 20_000 && sum.percentile(0.5) == histogram.percentile(0.5))
        #expect(LatencyHistogram().percentile(0.5) == 0)
    }

    @Test func bucketsCoverAllNumbers() {
        for value in [0, 1, 31, 32, 33, 63, 64, 1 << 20, 1 << 63, .max] as [UInt64] {
            let bucket = LatencyHistogram.bucket(of: value)
            #expect(LatencyHistogram.upperEdge(of: bucket) >= value)
            #expect(bucket == 0 || LatencyHistogram.upperEdge(of: bucket - 1) < value)
        }
    }

    @Test func blocksSayWhatIsWrongWithThem() throws {
        let pattern = VerifyPattern(run: 99)
        var block = [UInt8](repeating: 0, count: 4096)
        func check(_ change: (inout [UInt8]) -> Void) -> VerifyFault? {
            block.withUnsafeMutableBytes { pattern.fill($0, offset: 8192, generation: 3) }
            change(&block)
            return block.withUnsafeMutableBytes { bytes in
                do throws(VerifyFault) {
                    try pattern.check(bytes, offset: 8192, generation: 3)
                    return nil
                } catch {
                    return error
                }
            }
        }
        #expect(check { _ in } == nil)
        #expect(check { $0 = [UInt8](repeating: 0, count: 4096) } == .noHeader(offset: 8192, found: 0, expected: 3))
        #expect(check { $0[9] = 0 } == .misplaced(offset: 8192, found: 0))
        #expect(check { $0[16] = 2 } == .wrongGeneration(offset: 8192, found: 2, expected: 3))
        #expect(check { $0[24] = 98 } == .otherRun(offset: 8192))
        for position in [32, 40, 511, 512, 4095] {
            guard case .checksum = check({ $0[position] ^= 1 }) else {
                Issue.record("a changed byte \(position) is not seen")
                continue
            }
        }
    }

    @Test func blocksInFlightAreKeptApart() {
        var map = BlockMap(blocks: 10)
        func reserve(_ first: Int, _ count: Int, writing: Bool, expected: Bool) {
            let done = map.reserve(first, count, writing: writing)
            #expect(done == expected, "\(count) blocks from \(first)")
        }
        reserve(2, 3, writing: true, expected: true)
        reserve(4, 1, writing: false, expected: false)
        reserve(0, 3, writing: true, expected: false)
        reserve(5, 2, writing: false, expected: true)
        reserve(5, 2, writing: false, expected: true)
        reserve(6, 1, writing: true, expected: false)
        let inFlight = !map.isKnown(2)
        #expect(inFlight)
        map.release(2, 3, writing: true, known: true)
        let written = map.isKnown(2) && map.generation(2) == 1
        #expect(written)
        reserve(2, 1, writing: true, expected: true)
        map.release(2, 1, writing: true, known: false)
        // What failed is not known, and its number is not used again.
        let failed = !map.isKnown(2) && map.generation(2) == 2
        #expect(failed)
        map.release(5, 2, writing: false, known: true)
        map.release(5, 2, writing: false, known: true)
        reserve(6, 1, writing: true, expected: true)
    }

    @Test func json() {
        let value = JSON.object([
            ("a\"b", .string("x\\\n\u{1}é")), ("n", .integer(5)), ("d", .decimal(0.5)), ("nan", .decimal(.nan)),
            ("list", .array([.bool(true), .null, .integer(UInt64.max)])),
        ])
        #expect(
            value.serialized
                == "{\"a\\\"b\":\"x\\\\\\n\\u0001é\",\"n\":5,\"d\":0.5,\"nan\":null,\"list\":[true,null,18446744073709551615]}"
        )
    }

    @Test func plansThatMakeNoSenseAreRefused() {
        #expect(LoadPlan().complaint == nil)
        let changes: [(inout LoadPlan) -> Void] = [
            { $0.blockSize = 0 }, { $0.blockSize = 513 }, { $0.maxBlockSize = 2048 }, { $0.maxBlockSize = 6000 },
            { $0.depth = 0 }, { $0.skew = 8 }, { $0.readPercent = 101 }, { $0.offset = 5 },
            {
                $0.blockSize = 65536; $0.maxBlockSize = 65536; $0.verify = true
            },
        ]
        for (index, change) in changes.enumerated() {
            var plan = LoadPlan()
            change(&plan)
            #expect(plan.complaint != nil, "change \(index)")
        }
    }
}
