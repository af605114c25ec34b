// SPDX-License-Identifier: BSD-2-Clause
// Headers against what qemu-img writes, at the offsets of QEMU's docs/interop/qcow2.txt and block/qcow.c; and refusals.
import Glibc
import ImageCore
import QCOW2
import Testing

@Suite struct QCOWHeaderTests {
    let folder: Folder

    init() throws { folder = try Folder() }

    static let kinds: [(options: String, version: UInt32, clusterBits: UInt32)] = [
        ("-o compat=0.10", 2, 16), ("", 3, 16), ("-o cluster_size=512", 3, 9), ("-o cluster_size=2M", 3, 21),
        ("-o refcount_bits=1", 3, 16), ("-o lazy_refcounts=on", 3, 16), ("-o preallocation=metadata", 3, 16),
    ]

    @Test(arguments: kinds)
    func fieldsStandWhereTheFormatHasThem(options: String, version: UInt32, clusterBits: UInt32) throws {
        let bytes = try folder.image("qcow2", options, size: "7M")
        let header = try QCOWHeader(bytes)
        #expect((header.version, header.clusterBits, header.size) == (version, clusterBits, 7 << 20))
        #expect(header.l2Bits == clusterBits - 3 && header.clusterSize == 1 << UInt64(clusterBits))
        #expect(UInt64(header.version) == bytes.number(at: 4, bytes: 4))
        #expect(header.backingOffset == bytes.number(at: 8, bytes: 8))
        #expect(UInt64(header.backingLength) == bytes.number(at: 16, bytes: 4))
        #expect(UInt64(header.encryption) == bytes.number(at: 32, bytes: 4))
        #expect(header.l1Count == bytes.number(at: 36, bytes: 4) && header.l1Count > 0)
        #expect(header.l1Offset == bytes.number(at: 40, bytes: 8) && header.l1Offset > 0)
        #expect(header.refcountOffset == bytes.number(at: 48, bytes: 8) && header.refcountOffset > 0)
        #expect(UInt64(header.refcountClusters) == bytes.number(at: 56, bytes: 4))
        #expect(UInt64(header.snapshotCount) == bytes.number(at: 60, bytes: 4))
        #expect(header.format == "qcow2" && header.references.isEmpty)
        guard version == 3 else {
            #expect((header.headerLength, header.refcountOrder, header.incompatible) == (72, 4, 0))
            return
        }
        #expect(header.incompatible == bytes.number(at: 72, bytes: 8))
        #expect(UInt64(header.refcountOrder) == bytes.number(at: 96, bytes: 4))
        #expect(header.headerLength == bytes.number(at: 100, bytes: 4))
    }

    @Test func versionOneHasItsOwnHeader() throws {
        let bytes = try folder.image("qcow", size: "7M")
        let header = try QCOWHeader(bytes)
        #expect((header.version, header.size, header.format) == (1, 7 << 20, "qcow"))
        #expect(UInt64(header.clusterBits) == bytes.number(at: 32, bytes: 1) && header.clusterBits == 12)
        #expect(UInt64(header.l2Bits) == bytes.number(at: 33, bytes: 1) && header.l2Bits == 9)
        #expect(header.l1Offset == bytes.number(at: 40, bytes: 8))
        #expect(header.l1Count == 4, "7 MiB in L2 tables of 2 MiB each")
    }

    @Test func aSnapshotIsCounted() throws {
        _ = try folder.image("qcow2")
        try run("cd \(folder.path) && qemu-img snapshot -c one image")
        let bytes = try folder.bytes("image")
        let header = try QCOWHeader(bytes)
        #expect(header.snapshotCount == 1 && header.snapshotOffset == bytes.number(at: 64, bytes: 8))
    }

    @Test func namesAreThoseOfTheImage() throws {
        try run("cd \(folder.path) && qemu-img create -q -f raw base 1M")
        let header = try QCOWHeader(try folder.image("qcow2", "-b base -F raw"))
        #expect(header.references == [ImageReference(.backing, name: Array("base".utf8), format: Array("raw".utf8))])
        let old = try QCOWHeader(try folder.image("qcow", "-b base -F raw"))
        #expect(old.references == [ImageReference(.backing, name: Array("base".utf8), format: nil)])
        let split = try QCOWHeader(try folder.image("qcow2", "-o data_file=data"))
        #expect(split.references == [ImageReference(.data, name: Array("data".utf8), format: Array("raw".utf8))])
    }

    @Test func theCheckTellsWhatTheHeaderSays() throws {
        let bytes = try folder.image("qcow2", size: "3G")
        let check = try QCOWCheck(examining: ArrayReader(bytes))
        #expect(check.neededL1 == 6 && check.l1Bytes == check.header.l1Count * 8)
        #expect(!check.isDirty && !check.isCorrupt && !check.isEncrypted && !check.hasUnknownFeatures)
        #expect(QCOWProbe.memory(check, cache: 16 << 20) >= check.l1Bytes)
        let marked: [(bit: UInt8, dirty: Bool, corrupt: Bool, unknown: Bool)] = [
            (1, true, false, false), (2, false, true, false), (4, false, false, true), (128, false, false, true),
        ]
        for mark in marked {
            let check = try QCOWCheck(examining: ArrayReader(bytes.patched(79, [mark.bit])))
            #expect(
                (check.isDirty, check.isCorrupt, check.hasUnknownFeatures) == (mark.dirty, mark.corrupt, mark.unknown))
            // An image that is marked as damaged is served on where it was found damaged while a guest had it.
            #expect((QCOWProbe.memory(check, cache: 16 << 20) == 0) == mark.unknown)
        }
    }

    /// What a writer really keeps: both L1 tables, the cache at most, refcounts, clusters that are inflated, a bit for each cluster.
    @Test func theMemoryIsThatOfTheEngine() throws {
        let small = try QCOWCheck(examining: ArrayReader(try folder.image("qcow2", size: "1M")))
        #expect(QCOWProbe.memory(small, cache: 16 << 20) < 6 << 20)
        let bytes = try folder.image("qcow2", size: "1T")
        let check = try QCOWCheck(examining: ArrayReader(bytes))
        let large = QCOWProbe.memory(check, cache: 16 << 20)
        #expect(large > 16 << 20 && large <= 32 << 20, "\(large)")
        #expect(large - QCOWProbe.memory(check, cache: 1 << 20) == 15 << 20)
        // The file is full.
        let full = QCOWProbe.memory(QCOWCheck(header: check.header, fileSize: 1 << 40), cache: 16 << 20)
        #expect(full > large + 2 << 20 - 1 && full <= 32 << 20, "\(full)")
    }

    @Test func theProbeWantsMagicAndVersion() throws {
        for (made, bytes) in [("qcow2", try folder.image("qcow2")), ("qcow", try folder.image("qcow"))] {
            for length in [0, 3, 7, 8, 512] {
                for format in ["qcow2", "qcow", "raw"] {
                    let expected = format == made && length >= 8 ? 100 : 0
                    #expect(QCOWProbe.score(bytes.prefix(length), format: format) == expected)
                }
            }
            #expect(QCOWProbe.score(bytes.patched(7, [9]), format: made) == 0)
        }
    }

    // MARK: Refusals

    /// Bytes at an offset of a good version 3 image of 1 MiB, and what they are refused with.
    static let refusals: [(offset: Int, bytes: [UInt8], kind: ImageError.Kind, words: String)] = [
        (0, [0], .invalid, "this is no QCOW image"),
        (4, [0, 0, 0, 4], .invalid, "QCOW version 4; 1, 2 and 3 are known"),
        (20, [0, 0, 0, 6], .invalid, "its header says that it has"),
        (20, [0, 0, 0, 22], .invalid, "clusters would have 2^22 bytes"),
        (20, [255, 255, 255, 255], .invalid, "clusters would have 2^4294967295 bytes"),
        (24, [0, 0, 0, 0, 0, 0, 0, 1], .invalid, "has 1 bytes, less than one sector"),
        (24, [255, 0, 0, 0, 0, 0, 0, 0], .invalid, "its disk would have"),
        (36, [255, 255, 255, 255], .tooLarge, "the L1 table has 4294967295 entries"),
        (36, [0, 0, 0, 0], .invalid, "its L1 table has 0 entries, and the disk needs 1"),
        (40, [0, 0, 0, 0, 0, 0, 0, 0], .invalid, "its L1 table is at offset 0, in the header"),
        (40, [0, 0, 0, 0, 0, 3, 0, 8], .invalid, "which is not the start of a cluster"),
        (40, [255, 255, 255, 255, 255, 255, 0, 0], .invalid, "is not in the file of"),
        (40, [0, 0, 0, 0, 0, 1, 0, 0], .invalid, "its L1 table and its reference count table overlap"),
        (56, [255, 255, 255, 255], .tooLarge, "the reference count table has"),
        (60, [0, 1, 0, 1], .tooLarge, "the image has 65537 snapshots"),
        (60, [0, 0, 0, 1], .invalid, "its table of snapshots is at offset 0, in the header"),
        (96, [0, 0, 0, 7], .invalid, "its reference counts have 2^7 bits"),
        (100, [0, 0, 0, 103], .invalid, "its header says that it has 103 bytes"),
        (100, [255, 255, 255, 248], .invalid, "its header says that it has"),
        (112, [1, 1, 1, 1, 255, 0, 0, 0], .invalid, "the header extension at offset 112 has 4278190080 bytes"),
        (79, [2], .corrupt, "marked as corrupt: repair a copy of it"),
        (79, [4], .unsupported, "external data file"),
        (72, [128], .unsupported, "unknown incompatible features: bit 63"),
        (104, [9], .unsupported, "unknown compression type 9"),
        (35, [2], .unsupported, "encrypted with LUKS"),
        (35, [3], .unsupported, "unknown encryption method 3"),
        (14, [255, 255, 0, 0, 4, 0], .invalid, "has 1024 bytes; 1023 are the most"),
        (12, [127, 0, 0, 0, 0, 0, 0, 4], .invalid, "the name of its backing file, 4 bytes at offset 2130706432"),
    ]

    @Test(arguments: 0..<refusals.count)
    func whatIsWrongIsNamed(index: Int) throws {
        let wrong = Self.refusals[index]
        let good = try folder.image("qcow2")
        #expect(refusal(good) == nil && good.number(at: 40, bytes: 8) == 0x3_0000)
        let error = refusal(good.patched(wrong.offset, wrong.bytes))
        #expect(
            error?.kind == wrong.kind && error?.message.contains(wrong.words) == true, "\(error?.message ?? "good")")
    }

    @Test func extendedEntriesNeedLargeClustersAndNoEncryption() throws {
        let good = try folder.image("qcow2 -o extended_l2=on,cluster_size=16k")
        #expect(refusal(good) == nil)
        let small = refusal(try folder.image("qcow2 -o cluster_size=8k").patched(79, [16]))
        #expect(
            small?.kind == .invalid && small?.message.contains("have at least 2^14") == true, "\(small?.message ?? "")")
        let secret = refusal(good.patched(35, [1]))
        #expect(secret?.kind == .unsupported && secret?.message.contains("which libqcow cannot read") == true)
    }

    @Test func anL2TableMustBeWhereOneCanBe() throws {
        let good = try folder.image("qcow2")
        for (place, isGood) in [
            ([0, 0, 0, 0], true), ([0, 3, 0, 0], false), ([0, 1, 0, 0], false), ([1, 0, 0, 0], false),
        ] {
            let error = refusal(good.patched(0x3_0000 + 4, place.map { UInt8($0) }))
            #expect((error == nil) == isGood, "\(place)")
            #expect(isGood || error?.message.contains("entry 0 of its L1 table points to offset") == true)
        }
    }
}
