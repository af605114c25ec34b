// SPDX-License-Identifier: BSD-2-Clause
// Images that are written on storage that is full, too short, somebody else's or gone, and disks of unusual sizes.
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import TestSupport
import Testing

@Suite(.serialized) struct QCOWStorageTests {
    let folder = TemporaryFolder()
    let plugin: Plugin

    init() throws { plugin = try Plugin("qcow") }

    private static let piece = 64 << 10

    /// 64 KiB that say where they are.
    private func bytes(_ index: Int, _ round: Int = 1) -> [UInt8] {
        [UInt8](repeating: UInt8(truncatingIfNeeded: index &* 7 &+ round), count: Self.piece)
    }

    private func create(_ path: String, _ options: String, _ size: String) throws {
        try WrittenImage.must("qemu-img create -q -f qcow2 \(options) \(path) \(size)")
    }

    private func checkIsClean(_ path: String) {
        let check = shell("qemu-img check -f qcow2 \(path)")
        #expect(check.status == 0, "\(check.output)")
    }

    /// Writes until there is no room; each write is there or failed with ENOSPC. Those that went well.
    private func fill(_ queue: Queue, _ count: Int) throws -> Set<Int> {
        var good: Set<Int> = []
        for index in 0..<count {
            let status = queue.write(UInt64(index * Self.piece), bytes(index))
            try #require(status == 0 || status == -ENOSPC, "a write: \(status)")
            if status == 0 { good.insert(index) }
        }
        return good
    }

    /// What was answered is there, and what failed is as it was or as it would be, sector by sector.
    private func expect(_ queue: Queue, _ good: Set<Int>, of count: Int) {
        for index in 0..<count {
            let (status, found) = queue.read(UInt64(index * Self.piece), Self.piece)
            let wanted = bytes(index)
            #expect(status == 0, "a read at \(index)")
            if good.contains(index) {
                #expect(found == wanted, "\(index)")
            } else {
                #expect(found.allSatisfy { $0 == 0 || $0 == wanted[0] }, "\(index)")
            }
        }
    }

    // MARK: No room

    static let places: [(options: String, direct: String)] = [
        ("", "off"), ("", "on"), ("-o cluster_size=4k", "on"), ("-o cluster_size=512", "off"),
        ("-o cluster_size=256k", "off"),
    ]

    /// Of them in make test; all with XBB_LONG.
    static let volumes = getenv("XBB_LONG") == nil ? [1, 2, 3] : Array(0..<places.count)
    static let fileSystems: [(kind: String, index: Int)] =
        getenv("XBB_LONG") == nil
        ? [("tmpfs", 2), ("tmpfs", 3), ("ext4", 1)]
        : ["tmpfs", "ext4"].flatMap { kind in (0..<places.count).map { (kind, $0) } }

    /// On a volume of exact size the end is an error of the guest; the image is whole, and goes on when clusters are given back.
    @Test(arguments: volumes)
    func aVolumeEndsWithNoSpace(index: Int) throws {
        let (options, direct) = Self.places[index]
        // Not a whole number of clusters.
        let loop = try LoopDevice(size: 8 << 20 | 3 * 512)
        // What was on the volume before must not be seen.
        try WrittenImage.must("head -c 8M /dev/zero | tr '\\0' '\\377' > \(loop.path)")
        try create(loop.path, options, "32M")
        let count = 160
        do {
            let disk = try Disk(plugin, loop.path, ["direct": direct], format: "qcow2")
            let queue = try Queue(disk)
            let good = try fill(queue, count)
            #expect(good.count > 80 && good.count < 128, "\(good.count)")
            expect(queue, good, of: count)
            #expect(queue.command(XBB_OP_FLUSH) == 0)
            // A piece of a cluster leaves the rest of it zeroes: the volume had something else there.
            #expect(queue.command(XBB_OP_DISCARD, 0, 32 * Self.piece) == 0)
            var again = 0
            for attempt in 0..<200 where again != 0 || attempt == 0 {
                again = Int(queue.write(24 << 20 | 512, [UInt8](repeating: 9, count: 512)))
                if again != 0 { queue.idle(milliseconds: 50) }
            }
            #expect(again == 0, "clusters that were given back cannot be used: \(again)")
            let (status, found) = queue.read(24 << 20, 4096)
            #expect(status == 0 && found.enumerated().allSatisfy { $1 == (512..<1024 ~= $0 ? 9 : 0) })
            #expect(disk.breaches == 0)
        }
        checkIsClean(loop.path)
        let disk = try Disk(plugin, loop.path, format: "qcow2")
        let queue = try Queue(disk)
        #expect(queue.read(24 << 20 | 512, 512).bytes.allSatisfy { $0 == 9 })
    }

    private func mount(_ command: String) throws -> String {
        let place = "\(folder.path)/mount"
        try WrittenImage.must("mkdir -p \(place) && \(command) \(place)")
        return place
    }

    /// The same for a file system; with room, it goes on at once.
    @Test(arguments: fileSystems)
    func aFullFileSystemIsNoSpaceUntilThereIsRoom(kind: String, index: Int) throws {
        let (options, direct) = Self.places[index]
        let place: String
        if kind == "tmpfs" {
            place = try mount("mount -t tmpfs -o size=6m none")
        } else {
            try WrittenImage.must(
                "truncate -s 12M \(folder.path)/fs && mkfs.ext4 -q -O ^has_journal -m 0 \(folder.path)/fs")
            place = try mount("mount -o loop \(folder.path)/fs")
            try WrittenImage.must("head -c 4M /dev/zero > \(place)/other")
        }
        let path = "\(place)/image"
        try create(path, options, "32M")
        let count = 300
        do {
            let disk = try Disk(plugin, path, ["direct": direct])
            let queue = try Queue(disk)
            let good = try fill(queue, count)
            #expect(good.count > 50 && good.count < 200, "\(good.count)")
            expect(queue, good, of: count)
            try WrittenImage.must(
                kind == "tmpfs" ? "mount -o remount,size=64m \(place)" : "rm \(place)/other && sync -f \(place)")
            let rest = (0..<count).filter { !good.contains($0) }.prefix(20)
            for index in rest { #expect(queue.write(UInt64(index * Self.piece), bytes(index)) == 0, "\(index)") }
            expect(queue, good.union(rest), of: count)
            #expect(queue.command(XBB_OP_FLUSH) == 0 && disk.breaches == 0)
        }
        checkIsClean(path)
        // What was written is still there for a second reader.
        let disk = try Disk(plugin, path, readOnly: true)
        expect(try Queue(disk), [], of: 0)
    }

    /// A file system that becomes read-only under a disk, as ext4 does after an error: writes fail, reading goes on, and what was
    /// flushed is there when the file system was repaired.
    @Test(.enabled(if: geteuid() == 0, "mounting takes root"))
    func aFileSystemThatGoesReadOnly() throws {
        try WrittenImage.must("truncate -s 64M \(folder.path)/fs && mkfs.ext4 -q -m 0 \(folder.path)/fs")
        let place = try mount("mount -o loop,errors=remount-ro \(folder.path)/fs")
        let path = "\(place)/image"
        try create(path, "", "16M")
        do {
            let disk = try Disk(plugin, path)
            let queue = try Queue(disk)
            for index in 0..<32 { #expect(queue.write(UInt64(index * Self.piece), bytes(index)) == 0) }
            #expect(queue.command(XBB_OP_FLUSH) == 0)
            try WrittenImage.must(
                "echo 1 > /sys/fs/ext4/$(basename $(findmnt -no SOURCE \(place)))/trigger_fs_error")
            let statuses = (0..<64).map { queue.write(UInt64($0 * Self.piece), bytes($0, 2)) }
            #expect(statuses.allSatisfy { $0 == -EROFS || $0 == -EIO }, "\(Set(statuses))")
            for index in 0..<32 {
                let (status, found) = queue.read(UInt64(index * Self.piece), Self.piece)
                #expect(status == 0 && found == bytes(index), "\(index)")
            }
            #expect(queue.command(XBB_OP_DISCARD, 0, Self.piece) != 0)
            #expect(disk.breaches == 0)
        }
        try WrittenImage.must(
            "umount \(place) && { e2fsck -fy \(folder.path)/fs >/dev/null; [ $? -le 1 ]; } && mount -o loop \(folder.path)/fs \(place)"
        )
        checkIsWhole(path)
        let disk = try Disk(plugin, path)
        let queue = try Queue(disk)
        expect(queue, Set(0..<32), of: 32)
    }

    /// Clusters without an owner are the worst that an end without closing leaves.
    private func checkIsWhole(_ path: String) {
        let check = shell("qemu-img check -f qcow2 \(path)")
        #expect(check.status == 0 || check.status == 3, "\(check.output)")
    }

    // MARK: Somebody else's

    @Test func anImageThatQEMUHoldsIsRefusedAndQEMUIsRefusedOurs() throws {
        let path = "\(folder.path)/image"
        try create(path, "", "4M")
        let socket = "\(folder.path)/socket"
        try WrittenImage.must(
            "qemu-nbd -t -f qcow2 --fork --pid-file=\(folder.path)/pid -k \(socket) \(path) >/dev/null 2>&1")
        for isReadOnly in [false, true] {
            let refused = #expect(throws: Failure.self) { try Disk(plugin, path, readOnly: isReadOnly) }
            #expect(refused?.code == -EBUSY, "\(refused?.description ?? "")")
        }
        shell("kill -KILL $(cat \(folder.path)/pid)")
        var result = Result { try Disk(plugin, path) }
        for _ in 0..<500 where (try? result.get()) == nil {
            usleep(20_000)
            result = Result { try Disk(plugin, path) }
        }
        let disk = try result.get()
        for command in ["qemu-io -f qcow2 -c 'read 0 512'", "qemu-img check", "qemu-img snapshot -c two"] {
            let result = shell("\(command) \(path)")
            #expect(result.status != 0 && result.output.contains("lock"), "\(command): \(result.output)")
        }
        disk.close()
        checkIsClean(path)
    }

    // MARK: Shorter than it was

    /// What is cut off is an error with a reason, never zeroes; what is left is read, and nothing crashes.
    @Test(arguments: ["off", "on"])
    func anImageThatIsCutOffGivesErrors(direct: String) throws {
        let path = "\(folder.path)/image"
        try create(path, "", "16M")
        let disk = try Disk(plugin, path, ["direct": direct])
        let queue = try Queue(disk)
        for index in 0..<32 { #expect(queue.write(UInt64(index * Self.piece), bytes(index)) == 0) }
        #expect(queue.command(XBB_OP_FLUSH) == 0)
        // A mapping that is in memory is of no use when the data are gone.
        #expect(truncate(path, 10 * 64 << 10) == 0)
        var lost = 0
        for index in 0..<32 {
            let (status, found) = queue.read(UInt64(index * Self.piece), Self.piece)
            if status == 0 { #expect(found == bytes(index), "\(index) was made up") } else { lost += 1 }
        }
        #expect(lost > 20, "\(lost)")
        // None brings back what is gone as zeroes: not the rest of a cluster that is written to, either.
        for index in 0..<32 {
            #expect(queue.write(UInt64(index * Self.piece), Array(bytes(index, 2).prefix(4096))) != 0, "\(index)")
        }
        for index in 0..<64 { #expect(queue.write(UInt64(index * Self.piece), bytes(index, 2)) != 0, "\(index)") }
        #expect(queue.command(XBB_OP_FLUSH) != 0)
        for index in 0..<64 {
            let (status, found) = queue.read(UInt64(index * Self.piece), Self.piece)
            let before = index < 32 ? bytes(index) : [UInt8](repeating: 0, count: Self.piece)
            if status == 0 { #expect(found == before, "\(index) was made up") }
        }
        #expect(truncate(path, 0) == 0)
        for index in 0..<4 {
            _ = queue.write(UInt64(index * Self.piece), bytes(index, 3))
            _ = queue.command(XBB_OP_DISCARD, UInt64(index * Self.piece), Self.piece)
            _ = queue.command(XBB_OP_FLUSH)
        }
        #expect(disk.breaches == 0)
    }

    /// A flush finds it as well, before anything is read.
    @Test func aFlushFindsThatAnImageWasCutOff() throws {
        let path = "\(folder.path)/image"
        try create(path, "", "16M")
        let disk = try Disk(plugin, path, [:])
        let queue = try Queue(disk)
        for index in 0..<32 { #expect(queue.write(UInt64(index * Self.piece), bytes(index)) == 0) }
        #expect(queue.command(XBB_OP_FLUSH) == 0)
        #expect(truncate(path, 10 * 64 << 10) == 0)
        #expect(queue.command(XBB_OP_FLUSH) != 0)
        #expect(queue.write(0, bytes(0, 2)) != 0)
        #expect(disk.breaches == 0)
    }

    /// The clusters of bitmaps that are not kept up go to the guest, also the last one, within which the file ends.
    @Test(arguments: ["off", "on"])
    func anImageWithBitmapsIsWritten(direct: String) throws {
        let path = "\(folder.path)/image"
        try create(path, "", "8M")
        let made = shell("qemu-io -f qcow2 -c 'write 0 1M' \(path) && qemu-img bitmap --add --enable \(path) b0")
        #expect(made.status == 0, "\(made.output)")
        do {
            let disk = try Disk(plugin, path, ["direct": direct])
            let queue = try Queue(disk)
            for index in 0..<(8 << 20) / Self.piece {
                #expect(queue.write(UInt64(index * Self.piece), bytes(index)) == 0, "\(index)")
            }
            #expect(queue.command(XBB_OP_FLUSH) == 0)
            for index in 0..<(8 << 20) / Self.piece {
                #expect(queue.read(UInt64(index * Self.piece), Self.piece) == (0, bytes(index)), "\(index)")
            }
            #expect(disk.breaches == 0)
        }
        let checked = shell("qemu-img check -f qcow2 \(path)")
        #expect(checked.status == 0, "\(checked.output)")
    }

    // MARK: Unusual sizes

    private func residentKiB() -> Int {
        Int(shell("awk '/VmRSS/ { print $2 }' /proc/\(getpid())/status").output.prefix { $0 != "\n" }) ?? 0
    }

    /// Two pebibytes: the tables that are in memory are those in use.
    @Test func twoPebibytes() throws {
        let path = "\(folder.path)/image"
        try create(path, "-o cluster_size=2M", "2P")
        let before = residentKiB()
        do {
            let disk = try Disk(plugin, path)
            let queue = try Queue(disk)
            let size = disk.info.size
            #expect(size == 1 << 51)
            for index in 0..<16 {
                let place = size / 16 * UInt64(index) + (1 << 30)
                #expect(queue.write(place, bytes(index)) == 0)
                #expect(queue.read(place, Self.piece).bytes == bytes(index))
            }
            #expect(queue.write(size - 512, [UInt8](repeating: 5, count: 512)) == 0)
            #expect(queue.read(size - 4096, 4096).bytes.suffix(512).allSatisfy { $0 == 5 })
            #expect(queue.write(size, [UInt8](repeating: 5, count: 512)) == -EIO)
            #expect(queue.command(XBB_OP_DISCARD, 0, 1 << 30) == 0)
            let grown = residentKiB() - before
            print("QCOWStorageTests.twoPebibytes: \(grown) KiB more in memory")
            #expect(grown < 64 << 10, "\(grown) KiB")
        }
        checkIsClean(path)
    }

    /// A guest that gives its disk back sector by sector: no room is lost or gained by it, and no sync is made for each.
    @Test(arguments: ["", "-o cluster_size=512", "-o compat=0.10"])
    func discardsOfSingleSectors(options: String) throws {
        let path = "\(folder.path)/image"
        try create(path, options, "4M")
        do {
            let disk = try Disk(plugin, path)
            let queue = try Queue(disk)
            for index in 0..<32 { #expect(queue.write(UInt64(index * Self.piece), bytes(index)) == 0) }
            let commits = disk.statistic("group-commits")
            let requests = (0..<32).map { _ in Request() }
            for start in stride(from: 0, to: 2 << 20, by: 512 * 32) {
                for (index, request) in requests.enumerated() {
                    request.set(XBB_OP_DISCARD, UInt64(start + 512 * index), 512)
                }
                #expect(queue.submit(requests) == 32 && queue.run() == 0)
                #expect(requests.allSatisfy { $0.status == 0 })
            }
            let made = disk.statistic("group-commits") - commits
            #expect(made < 1000, "\(made) syncs for 4096 discards")
            // Data or zeroes, and both of them stay.
            var found: [UInt8] = []
            for index in 0..<32 { found += queue.read(UInt64(index * Self.piece), Self.piece).bytes }
            #expect(found.enumerated().allSatisfy { $1 == 0 || $1 == bytes($0 / Self.piece)[0] })
            #expect(queue.write(512, [UInt8](repeating: 3, count: 512)) == 0)
            #expect(queue.read(512, 512).bytes.allSatisfy { $0 == 3 })
            #expect(disk.breaches == 0)
        }
        checkIsClean(path)
    }

    /// With discard=ignore a discard does nothing and is not offered.
    @Test func discardsCanBeIgnored() throws {
        let path = "\(folder.path)/image"
        try create(path, "", "4M")
        let disk = try Disk(plugin, path, ["discard": "ignore"])
        #expect(!disk.can(XBB_CAP_DISCARD) && disk.can(XBB_CAP_WRITE_ZEROES))
        let queue = try Queue(disk)
        #expect(queue.write(0, bytes(1)) == 0)
        #expect(queue.command(XBB_OP_WRITE_ZEROES, 0, Self.piece, flags: XBB_REQ_MAY_UNMAP) == 0)
        #expect(queue.read(0, Self.piece).bytes.allSatisfy { $0 == 0 })
    }
}
