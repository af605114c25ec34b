// SPDX-License-Identifier: BSD-2-Clause
// Layers of block devices, and what the kernel's lists say about their users.
import Base
import Testing

@testable import StorageSharing

@Suite struct BlockTopologyTests {
    private static let (disk, part, other) = (StorageID.device(1), StorageID.device(2), StorageID.device(3))
    private static let (root, array, loop, upper) = (
        StorageID.device(4), StorageID.device(5), StorageID.device(6), StorageID.device(7)
    )
    private static let image = StorageID.file(device: 9, inode: 9)

    /// sda with two partitions, of which the first is part of a volume and the second of an array; loop over loop over a
    /// file, and a volume on that.
    private let topology = BlockTopology(devices: [
        disk: .init(name: "sda"), part: .init(name: "sda1", below: [disk]), other: .init(name: "sda2", below: [disk]),
        root: .init(name: "dm-0", label: "vg-root", below: [part], isHolder: true),
        array: .init(name: "md0", below: [other], isHolder: true),
        loop: .init(name: "loop0", below: [image]), upper: .init(name: "loop1", below: [loop]),
        .device(8): .init(name: "dm-1", below: [upper], isHolder: true, isReadOnly: true),
    ])

    @Test("what is made of a device, and what it is made of") func layers() {
        #expect(topology.above(Self.disk) == [Self.part, Self.other, Self.root, Self.array])
        #expect(topology.above(Self.part) == [Self.root])
        #expect(topology.below(Self.root) == [Self.part, Self.disk])
        #expect(topology.above(Self.image) == [Self.loop, Self.upper, .device(8)])
        #expect(topology.below(Self.upper) == [Self.loop, Self.image])
        #expect(topology.name(of: Self.root) == "vg-root (dm-0)" && topology.name(of: Self.array) == "md0")
    }

    @Test("devices that are made of each other end the search too") func circle() {
        let topology = BlockTopology(devices: [
            .device(1): .init(name: "a", below: [.device(2)]), .device(2): .init(name: "b", below: [.device(1)]),
        ])
        #expect(topology.above(.device(1)) == [.device(2)] && topology.below(.device(1)) == [.device(2)])
    }

    @Test("mounts, with spaces in their names and without a device") func mounts() {
        let lines: [Substring] = [
            "36 35 8:1 / /mnt\\040a\\134 rw,noatime master:1 - ext4 /dev/sda1 rw,errors=continue",
            "37 35 0:30 / /home ro,relatime shared:2 - btrfs /dev/sda2 ro,space_cache",
            "38 35 0:4 / /proc rw - proc proc rw",
            "39 35 8:3 / /b ro - ext4 /dev/sda3 rw", "", "1 2 3", "a - b",
        ]
        let uses = LocalUse.mounts(lines) { $0 == "/dev/sda2" ? .device(42) : nil }
        let (first, third) = (StorageID(.init(major: 8, minor: 1)), StorageID(.init(major: 8, minor: 3)))
        #expect(
            uses == [
                LocalUse(storage: first, text: "is mounted on /mnt a\\", writes: true),
                LocalUse(storage: .device(42), text: "is mounted on /home", writes: false),
                LocalUse(storage: third, text: "is mounted on /b", writes: true),
            ])
    }

    @Test("swap on devices and in files") func swap() {
        let lines: [Substring] = [
            "Filename\t\t\t\tType\t\tSize", "/dev/dm-1   partition\t1\t0\t-2", "/swap\\040file  file\t1\t0\t-3",
        ]
        var asked: [String] = []
        let uses = LocalUse.swap(lines) {
            asked.append($0)
            return .device(UInt64(asked.count))
        }
        #expect(asked == ["/dev/dm-1", "/swap file"])
        #expect(uses.allSatisfy { $0.text == "is active swap" && $0.writes } && uses.count == 2)
    }

    @Test("lines of the kernel's locks") func locks() throws {
        let lock = try #require(KernelLock("1: FLOCK  ADVISORY  WRITE 4711 fd:00:16222640 0 EOF"))
        #expect(lock.isWhole && lock.isExclusive && lock.process == 4711 && lock.inode == 16_222_640)
        let ofFile = try #require(KernelLock("\t1: OFDLCK ADVISORY  READ -1 08:02:77 100 100"))
        #expect(!ofFile.isWhole && !ofFile.isExclusive && ofFile.process == -1 && ofFile.inode == 77)
        for line in ["", "1: -> FLOCK  ADVISORY  WRITE 4711 fd:00:1 0 EOF", "1: FLOCK ADVISORY WRITE x fd:00:1 0 EOF"] {
            #expect(KernelLock(line[...]) == nil)
        }
    }
}
