// SPDX-License-Identifier: BSD-2-Clause
// Real servers of each kind: what they say of an export, and how they answer requests.
import NBD
import Testing

@Suite(.serialized) struct RealServerTests {
    /// Writes, reads back, and reads what was never written.
    private func useDisk(_ client: RealClient, isOld: Bool = false) throws {
        let pattern = (0..<8192).map { UInt8(truncatingIfNeeded: $0 / 32) }
        #expect(try client.ask(.write, offset: 65536, length: 8192, data: pattern).error == 0)
        let read = try client.ask(.read, offset: 61440, length: 65536)
        let zeroes = [UInt8](repeating: 0, count: 65536)
        #expect(read.error == 0 && read.data == Array((zeroes.prefix(4096) + pattern + zeroes).prefix(65536)))
        // nbdkit offers all in the old style, and then says that each is not supported.
        if isOld { return }
        let facts = try #require(client.facts)
        if facts.flags.contains(.flush) { #expect(try client.ask(.flush).error == 0) }
        if facts.flags.contains(.writeZeroes) {
            #expect(try client.ask(.writeZeroes, .noHole, offset: 65536, length: 4096).error == 0)
            #expect(try client.ask(.read, offset: 65536, length: 4096).data == Array(zeroes.prefix(4096)))
        }
        if facts.flags.contains(.trim) { #expect(try client.ask(.trim, offset: 65536, length: 8192).error == 0) }
        if facts.allocationContext != nil {
            let status = try client.ask(.blockStatus, offset: 0, length: 1 << 20)
            #expect(status.error == 0 && status.extents.reduce(0) { $0 + Int($1.length) } == 1 << 20)
            #expect(try client.ask(.blockStatus, .oneExtent, offset: 0, length: 1 << 20).extents.count == 1)
        }
        // Behind the end.
        #expect(try client.ask(.read, offset: 1 << 20, length: 512).error == 22)
    }

    @Test func nbdkitIsUnderstood() throws {
        let client = try RealClient(try RealServer.nbdkit("memory 1M"))
        let facts = try #require(client.facts)
        #expect(facts.size == 1 << 20 && facts.hasStructuredReplies && facts.allocationContext != nil)
        #expect(facts.flags.isSuperset(of: [.flush, .forcedAccess, .trim, .writeZeroes, .severalConnections]))
        try useDisk(client)
    }

    @Test func qemuIsUnderstood() throws {
        let client = try RealClient(try RealServer.qemu("--discard=unmap"))
        let facts = try #require(client.facts)
        #expect(facts.size == 1 << 20 && facts.hasStructuredReplies && facts.allocationContext != nil)
        #expect(facts.blocks.maximumPayload == 1 << 25 && facts.flags.isSuperset(of: [.flush, .trim, .writeZeroes]))
        try useDisk(client)
    }

    @Test func nbdkitWithoutStructuredRepliesIsUnderstood() throws {
        let client = try RealClient(try RealServer.nbdkit("--no-sr memory 1M"))
        #expect(client.facts?.hasStructuredReplies == false && client.facts?.allocationContext == nil)
        try useDisk(client)
    }

    @Test func nbdkitOfTheOldStyleIsUnderstood() throws {
        let server = try RealServer.nbdkit("--oldstyle memory 1M")
        let client = try RealClient(server)
        #expect(client.facts?.size == 1 << 20 && client.transcript.count == 152)
        try useDisk(client, isOld: true)
        #expect(try failure(server, "disk").kind == .noSuchExport)
        #expect(try failure(server, isTLS: true).kind == .withoutTLS)
    }

    /// Servers that know no option but EXPORT_NAME, padded or not.
    @Test func nbdkitOfTheFirstNewStyleIsUnderstood() throws {
        for mask in [0, 1, 2, 3] {
            let server = try RealServer.nbdkit("--mask-handshake=\(mask) memory 1M")
            let client = try RealClient(server)
            #expect(client.facts?.size == 1 << 20 && client.facts?.hasStructuredReplies == (mask & 1 == 1), "\(mask)")
            try useDisk(client)
        }
    }

    /// EXPORT_NAME where GO is known, too.
    @Test func exportNameIsUnderstood() throws {
        var wishes = Handshake.Wishes(exportName: [], isTLS: false)
        wishes.avoidsGo = true
        for server in [try RealServer.nbdkit("memory 1M"), try RealServer.qemu("")] {
            let client = try RealClient(server, wishes)
            #expect(client.facts?.size == 1 << 20 && client.facts?.hasStructuredReplies == true)
            try useDisk(client)
        }
    }

    @Test func readOnlyExportsAreKnown() throws {
        for server in [try RealServer.nbdkit("-r memory 1M"), try RealServer.qemu("-r")] {
            let client = try RealClient(server)
            #expect(client.facts?.isReadOnly == true)
            #expect(try client.ask(.write, length: 512, data: [UInt8](repeating: 1, count: 512)).error > 0)
        }
    }

    @Test func namesOfExportsReachTheServer() throws {
        let server = try RealServer.qemu("-x 'my disk'")
        #expect(try RealClient(server, "my disk").facts?.size == 1 << 20)
        let missing = try failure(server, "other\u{1b}")
        #expect(missing.kind == .noSuchExport && missing.message.contains("'other?'"), "\(missing.message)")
        let nbdkit = try RealServer.nbdkit("eval get_size='echo 512' pread='exit 1' open='echo ENOENT no >&2; exit 1'")
        #expect(try failure(nbdkit).kind == .noSuchExport || failure(nbdkit).kind == .refused)
        #expect(
            try RealClient(try RealServer.nbdkit("info exportname"), "ü").ask(.read, length: 2).data == Array("ü".utf8))
    }

    /// Sizes at the edges of what can be.
    @Test func sizesAtTheEdgesAreUnderstood() throws {
        for (size, usable) in [
            ("0", 0), ("1", 0), ("511", 0), ("513", 512), ("1000000", 999_936),
            ("9223372036854775807", (1 << 63) - 512),
        ] as [(String, UInt64)] {
            let client = try RealClient(try RealServer.nbdkit("eval get_size='echo \(size)' pread='exit 1'"))
            #expect(client.facts?.usableSize == usable && client.facts?.size == UInt64(size), "\(size)")
        }
    }

    @Test func blockSizesAreUnderstood() throws {
        let plugin = "eval get_size='echo 1048576' pread='exit 1'"
        let client = try RealClient(try RealServer.nbdkit("\(plugin) block_size='echo 4096 65536 1M'"))
        let blocks = try #require(client.facts?.blocks)
        #expect(blocks.minimum == 4096 && blocks.preferred == 65536 && blocks.maximumPayload == 1 << 20)
        #expect(client.facts?.largestTransfer == 1 << 20)
        let large = try RealServer.nbdkit("\(plugin) block_size='echo 65536 65536 1M'")
        #expect(try failure(large).kind == .unsupported)
    }

    @Test func errorsOfServersReachTheCaller() throws {
        for (word, code) in [("EPERM", 1), ("EIO", 5), ("ENOMEM", 12), ("ENOSPC", 28), ("ESHUTDOWN", 108)]
            as [(String, Int32)]
        {
            for mode in ["", "--no-sr "] {
                let server = try RealServer.nbdkit(
                    "\(mode)eval get_size='echo 1048576' pread='echo \(word) broken >&2; exit 1'")
                let answer = try RealClient(server).ask(.read, length: 4096)
                #expect(answer.error == code, "\(mode)\(word)")
            }
        }
    }

    /// qemu-nbd sends holes as such.
    @Test func holesOfRealServersAreZeroes() throws {
        let client = try RealClient(try RealServer.qemu(""))
        let data = [UInt8](repeating: 9, count: 65536)
        for start in stride(from: UInt64(0), to: 1 << 20, by: 1 << 18) {
            #expect(try client.ask(.write, offset: start, length: 65536, data: data).error == 0)
        }
        let read = try client.ask(.read, offset: 0, length: 1 << 20)
        let part = data + [UInt8](repeating: 0, count: 3 * 65536)
        #expect(read.error == 0 && read.data == part + part + part + part)
    }

    @Test func tlsIsAgreedOnAndDemanded() throws {
        let server = try RealServer.nbdkit("--tls=require --tls-psk=/dev/null memory 1M")
        #expect(try failure(server).kind == .wantsTLS)
        #expect(try RealClient(server, isTLS: true).hasTLS)
        #expect(try failure(try RealServer.nbdkit("memory 1M"), isTLS: true).kind == .withoutTLS)
        #expect(try failure(try RealServer.qemu(""), isTLS: true).kind == .withoutTLS)
    }
}
