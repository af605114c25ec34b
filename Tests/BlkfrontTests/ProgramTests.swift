// SPDX-License-Identifier: BSD-2-Clause
// The programs: nbdkit's plugin under the standard NBD clients, and xbb-blkfront.
import Glibc
import Testing
import XenLoopback

@testable import Blkfront

@Suite struct ProgramTests {
    /// Runs a command with nbdkit around it; $uri is the disk.
    private func nbdkit(_ lab: DeviceLab, _ arguments: String = "", _ command: String) throws -> (Int32, String) {
        let quoted = command.replacing("'", with: "'\\''")
        return try shell(
            "nbdkit -U - '\(buildDirectory)/libnbdkit-xbb-plugin.so' dir='\(lab.directory)' domid=\(lab.domainID) "
                + "\(arguments) --run '\(quoted)'")
    }

    private func temporaryFile(_ bytes: [UInt8]) throws -> String {
        var template = Array("/tmp/xbb-file-XXXXXX".utf8CString)
        let descriptor = mkstemp(&template)
        try #require(descriptor >= 0)
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            try #require(count > 0)
            rest = rest.dropFirst(count)
        }
        close(descriptor)
        return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    @Test func theLibraryExportsOneSymbol() throws {
        let (status, output) = try shell(
            "nm -D --defined-only '\(buildDirectory)/libnbdkit-xbb-plugin.so' | grep -v ' [a-z] '")
        #expect(status == 0 && output.split(separator: " ").last == "plugin_init\n", "\(output)")
    }

    @Test func whatNBDClientsAreTold() throws {
        let lab = try DeviceLab(joins: false)
        _ = try lab.host()
        var settings = ToySettings()
        settings.keys["info"] = "4"
        settings.sectors = 100
        _ = try lab.host(number: 51728, settings: settings)
        let (status, output) = try nbdkit(lab, "vdev=xvda vdev=xvdb", "nbdinfo --list \"$uri\"")
        #expect(status == 0)
        for line in [
            "export=\"xvda\"", "export=\"xvdb\"", "export-size: 4194304", "export-size: 51200", "is_read_only: true",
            "is_read_only: false", "can_flush: true", "can_trim: true", "can_zero: true", "can_multi_conn: true",
            "can_fua: true", "block_size_minimum: 512", "block_size_preferred: 4096",
        ] {
            #expect(output.contains(line), "\(line) is not in \(output)")
        }
        let (size, text) = try nbdkit(lab, "vdev=xvdb", "nbdinfo --size \"$uri\"")
        #expect(size == 0 && text == "51200\n", "\(text)")
        try lab.stop()
    }

    @Test(arguments: ["", "queues=2 ring-pages=8", "abi=x86_32 grants=pooled persistent=1 requests=16"])
    func imagesAreCopiedInAndOut(arguments: String) throws {
        let lab = try DeviceLab(joins: false)
        var settings = ToySettings()
        settings.sectors = 16384
        let host = try lab.host(settings: settings)
        let image = randomBytes(8 << 20, seed: 3)
        let path = try temporaryFile(image)
        defer { unlink(path) }
        var (status, output) = try nbdkit(lab, arguments, "nbdcopy '\(path)' \"$uri\"")
        #expect(status == 0, "\(output)")
        #expect(host.disk.bytes(at: 0, count: image.count) == image)
        (status, output) = try nbdkit(
            lab, arguments, "nbdcopy \"$uri\" '\(path).out' && cmp '\(path)' '\(path).out' && rm '\(path).out'")
        #expect(status == 0, "\(output)")
        (status, output) = try nbdkit(lab, arguments, "qemu-img compare -f raw -F raw '\(path)' \"$uri\"")
        #expect(status == 0 && output.contains("identical"), "\(output)")
        try lab.stop()
    }

    @Test func fioVerifiesWhatItWrites() throws {
        let lab = try DeviceLab(joins: false)
        var settings = ToySettings()
        settings.sectors = 65536
        let host = try lab.host(settings: settings)
        let (status, output) = try nbdkit(
            lab, "",
            "cd '\(lab.directory)' && fio --name=verify --ioengine=nbd --uri=\"$uri\" --rw=randwrite "
                + "--bsrange=4k-256k --size=16M --iodepth=32 --verify=crc32c --verify_fatal=1 --do_verify=1 "
                + "--randseed=20 --fsync=64")
        #expect(status == 0 && output.contains("err= 0"), "\(output)")
        #expect(host.disk.counts.flushes > 0)
        try lab.stop()
    }

    @Test func qemuZeroesDiscardsAndFlushes() throws {
        let lab = try DeviceLab(joins: false)
        let host = try lab.host()
        host.disk.store([UInt8](repeating: 0xaa, count: 1 << 20), at: 0)
        let (status, output) = try nbdkit(
            lab, "",
            "qemu-io -f raw -t none \"$uri\" -c 'write -z 4096 8192' -c 'discard 65536 65536' "
                + "-c 'write -f -P 7 131072 512' -c 'read -P 7 131072 512' -c 'read -P 0xaa 0 4096' -c flush")
        #expect(status == 0 && !output.contains("failed") && !output.contains("rror"), "\(output)")
        #expect(host.disk.bytes(at: 4096, count: 8192).allSatisfy { $0 == 0 })
        #expect(host.disk.bytes(at: 65536, count: 65536).allSatisfy { $0 == 0 })
        #expect(host.disk.bytes(at: 131072, count: 512).allSatisfy { $0 == 7 })
        let counts = host.disk.counts
        #expect(counts.discards == 1 && counts.flushes >= 2)
        try lab.stop()
    }

    /// A copy of a sparse image takes no storage where the image has none.
    @Test func whatIsZeroIsNotWritten() throws {
        let lab = try DeviceLab(joins: false)
        let host = try lab.host()
        host.disk.store([UInt8](repeating: 0xaa, count: 4096), at: 1 << 20)
        let (status, output) = try nbdkit(
            lab, "",
            "qemu-io -f raw -t none \"$uri\" -c 'write -z 0 1M' -c 'write -z -u 2M 1M'")
        #expect(status == 0 && !output.contains("rror"), "\(output)")
        #expect(host.disk.counts.writes == 0)
        let (again, text) = try nbdkit(lab, "", "qemu-io -f raw -t none \"$uri\" -c 'write -z 0 4M'")
        #expect(again == 0 && !text.contains("rror"), "\(text)")
        #expect(host.disk.bytes(at: 0, count: 4 << 20).allSatisfy { $0 == 0 })
        try lab.stop()
    }

    /// The command of --run has an answer, and does not wait at a socket that nobody serves.
    @Test(arguments: ["vdev=xvdc", "vdev=xvda vdev=xvdc"])
    func aMissingDiskIsAnErrorOfTheClient(arguments: String) throws {
        let lab = try DeviceLab(joins: false)
        _ = try lab.host()
        let (status, output) = try nbdkit(lab, arguments, "nbdinfo --size \"$uri\"")
        #expect(status != 0 && output.contains("device/vbd/51744/backend is missing"), "\(output)")
        try lab.stop()
    }

    @Test func aDeadDeviceIsAnErrorOfTheClient() throws {
        let lab = try DeviceLab(joins: false)
        var settings = ToySettings()
        settings.mischief = .wrongOperation
        settings.mischiefAt = 5
        _ = try lab.host(settings: settings)
        let (status, output) = try nbdkit(lab, "", "nbdcopy \"$uri\" null:")
        #expect(status != 0 && output.contains("has wrong operation"), "\(output)")
        try lab.stop()
    }

    @Test(arguments: [
        ("domid=1 vdev=xx", "vdev=xx is no disk"), ("domid=x", "domid=x is no such number"), ("vdev=xvda", "domid=<N>"),
        ("domid=1 nonsense=1", "unknown parameter 'nonsense'"), ("domid=1 abi=arm", "native, x86_64 or x86_32"),
        ("domid=1 dir=/nowhere", "/nowhere/hypervisor.sock"),
    ])
    func wrongParametersAreNamed(arguments: String, message: String) throws {
        let (_, output) = try shell(
            "nbdkit -U - '\(buildDirectory)/libnbdkit-xbb-plugin.so' \(arguments) --run true")
        #expect(output.contains(message), "\(output)")
    }

    // MARK: xbb-blkfront

    private func blkfront(_ lab: DeviceLab, _ arguments: String) throws -> (Int32, String) {
        let words = arguments.split(separator: " ", maxSplits: 1)
        return try shell(
            "'\(buildDirectory)/xbb-blkfront' \(words[0]) --dir '\(lab.directory)' --domid \(lab.domainID) "
                + (words.count > 1 ? words[1] : ""))
    }

    @Test func infoSaysWhatWasNegotiated() throws {
        let lab = try DeviceLab(joins: false)
        _ = try lab.host()
        var (status, output) = try blkfront(lab, "info --ring-pages 8 --queues 2")
        #expect(status == 0)
        for line in ["ring-pages: 8", "ring-entries: 256", "queues: 2", "bytes: 4194304", "ring-page-order=3"] {
            #expect(output.contains(line), "\(line) is not in \(output)")
        }
        (status, output) = try blkfront(lab, "info --json")
        #expect(status == 0 && output.hasPrefix("{\"frontend\":\"/local/domain/1/device/vbd/51712\""), "\(output)")
        #expect(try lab.report().grantedReferences == 0)
        try lab.stop()
    }

    @Test func loadsVerifyAndReport() throws {
        let lab = try DeviceLab(joins: false)
        _ = try lab.host()
        var (status, output) = try blkfront(
            lab, "load --rw randrw --bs 4k-64k --depth 16 --count 500 --verify crc32c --flush-every 20 --ring-pages 4")
        #expect(status == 0 && output.contains("verified: ") && output.contains("IOPS"), "\(output)")
        (status, output) = try blkfront(lab, "load --rw read --bs 44k --depth 4 --time 0.2 --json")
        #expect(status == 0 && output.contains("\"ok\":true") && output.contains("\"p99.9\""), "\(output)")
        try lab.stop()
    }

    /// What cannot be loaded is not left connected.
    @Test func aDiskThatIsRefusedIsGivenBack() throws {
        let lab = try DeviceLab(joins: false)
        var settings = ToySettings()
        settings.keys["info"] = "4"
        _ = try lab.host(settings: settings)
        for (options, text) in [("--rw write", "read-only"), ("--rw randrw --bs 512-4k --verify history", "writable")] {
            let (status, output) = try blkfront(lab, "load \(options)")
            #expect(status == 1 && output.contains(text), "\(output)")
            let store = try lab.xen.platform().openStore()
            #expect(try store.text("/local/domain/\(lab.domainID)/device/vbd/51712/state") == "6")
        }
        #expect(try lab.report().grantedReferences == 0)
        try lab.stop()
    }

    @Test func loadsThatOverlapAreVerifiedByTheirHistory() throws {
        let lab = try DeviceLab(joins: false)
        let host = try lab.host()
        // What is there at first is not asked about.
        host.disk.store([UInt8](repeating: 0xaa, count: 1 << 20), at: 0)
        let arguments = "load --rw randrw --bs 512-24k --depth 16 --verify history --flush-every 20 --discard-every 30"
        var (status, output) = try blkfront(lab, "\(arguments) --count 500 --ring-pages 4 --json")
        #expect(status == 0 && output.contains("\"ok\":true") && output.contains("\"flush\":"), "\(output)")
        #expect(!output.contains("\"verified_blocks\":0,"), "\(output)")
        (status, output) = try blkfront(lab, "\(arguments) --time 0.3 --queues 2")
        #expect(status == 0 && output.contains("verified: ") && output.contains("IOPS"), "\(output)")
        let disk = host.disk
        let vandal = try FrontThread(name: "vandal") {
            for round in 0..<2000 {
                usleep(1000)
                disk.store([0xee], at: (round * 512 + 100) % (64 << 10))
            }
        }
        (status, output) = try blkfront(lab, "\(arguments) --size 64k --time 20 --seed 3")
        vandal.join()
        #expect(status == 1 && output.contains("xbb-blkfront: verification failed: sector "), "\(output)")
        try lab.stop()
    }

    @Test(arguments: [
        "--bs 4k", "--bs 512-256k", "--bs 512-4k --rw read", "--bs 512-4k --skew 1", "--bs 512-4k --spins 9",
    ])
    func aHistoryWantsSmallRequestsAnywhere(options: String) throws {
        let lab = try DeviceLab(joins: false)
        let (status, output) = try blkfront(lab, "load --verify history --rw randrw \(options)")
        #expect(status == 64 && output.contains("--verify history takes"), "\(output)")
        try lab.stop()
    }

    @Test func exitStatusAndMessages() throws {
        let lab = try DeviceLab(joins: false)
        var settings = ToySettings()
        settings.mischief = .keepsGrantMapped
        settings.mischiefAt = 100
        _ = try lab.host(settings: settings)
        var (status, output) = try blkfront(lab, "load --rw randwrite --depth 8")
        #expect(status == 1 && output.contains("xbb-blkfront: the device is dead: backend has not unmapped grant"))
        (status, output) = try blkfront(lab, "load --bs 1000")
        #expect(status == 64 && output.contains("multiple of 512"), "\(output)")
        (status, output) = try blkfront(lab, "info --vdev nonsense")
        #expect(status == 64, "\(output)")
        (status, output) = try blkfront(lab, "info --vdev xvdz")
        #expect(status == 1 && output.contains("device/vbd/268441856/backend is missing"), "\(output)")
        try lab.stop()
    }
}
