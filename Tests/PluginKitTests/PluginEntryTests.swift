// SPDX-License-Identifier: BSD-2-Clause
// The table that the kit makes of a plugin in Swift, called as a host calls it.
import Glibc
import PluginAPI
import PluginKit
import Synchronization
import Testing

/// All of them share the one host.
@Suite(.serialized) struct PluginKitSuite {}

extension PluginKitSuite {
    @Suite struct PluginEntryTests {
        private var table: xbb_plugin { testPlugin.entry.pointee }

        init() {
            FakeHost.reset()
            _ = testPlugin.entry.pointee.load(FakeHost.table)
        }

        private struct Opened {
            var code: Int32
            var message: String
            var device: UnsafeMutableRawPointer?
        }

        private func open(
            count: UInt64 = 4, text: String = "words", size: UInt64 = 4096, flags: Int = 0, options: Int = 6
        ) -> Opened {
            text.withCString { text in
                "hunter2".withCString { secret in
                    "fast".withCString { mode in
                        "two".withCString { format in
                            let values = [
                                xbb_value(num: size, str: nil), xbb_value(num: count, str: nil),
                                xbb_value(num: 0, str: nil), xbb_value(num: 0, str: text),
                                xbb_value(num: 0, str: secret), xbb_value(num: 0, str: mode),
                            ]
                            return values.withUnsafeBufferPointer { values in
                                var open = xbb_open()
                                open.struct_size = UInt32(MemoryLayout<xbb_open>.size)
                                open.flags = UInt32(flags)
                                open.fd = 5
                                open.option_count = UInt32(options)
                                open.options = values.baseAddress
                                open.format = format
                                var (device, error) = (UnsafeMutableRawPointer?.none, xbb_error())
                                let code = table.open(&open, &device, &error)
                                return Opened(code: code, message: message(error), device: device)
                            }
                        }
                    }
                }
            }
        }

        private func message(_ error: xbb_error) -> String {
            withUnsafeBytes(of: error.message) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        }

        private func openQueue(
            _ device: UnsafeMutableRawPointer?, depth: UInt32 = 32
        ) -> (Int32, UnsafeMutableRawPointer?) {
            var parameters = xbb_queue_params()
            parameters.struct_size = UInt32(MemoryLayout<xbb_queue_params>.size)
            parameters.depth = depth
            var (queue, error) = (UnsafeMutableRawPointer?.none, xbb_error())
            let code = table.queue_open(device, OpaquePointer(bitPattern: 0x1000), &parameters, &queue, &error)
            return (code, queue)
        }

        private func submit(_ queue: UnsafeMutableRawPointer?, _ requests: [TestRequest]) -> UInt32 {
            let list: [UnsafeMutablePointer<xbb_req>?] = requests.map(\.pointer)
            return list.withUnsafeBufferPointer { table.submit(queue, $0.baseAddress, UInt32(requests.count)) }
        }

        @Test func theTableIsComplete() {
            #expect(table.struct_size == UInt32(MemoryLayout<xbb_plugin>.size))
            #expect((table.abi_major, table.abi_minor) == (UInt16(XBB_ABI_MAJOR), UInt16(XBB_ABI_MINOR)))
            #expect(String(cString: table.name) == "test")
            #expect(String(cString: table.version) == "7")
            #expect(String(cString: table.description) == "A plugin of the tests")
            #expect((0..<2).map { String(cString: table.formats[$0]!) } == ["one", "two"])
            #expect(table.formats[2] == nil)
            #expect(table.option_count == 6 && table.flags == 0 && table.thread_model == UInt32(XBB_THREADS_QUEUE))
            #expect(table.open != nil && table.close != nil && table.get_info != nil && table.queue_open != nil)
            #expect(table.queue_close != nil && table.submit != nil && table.load != nil && table.start != nil)
            #expect(table.req_ctx_size <= 64)
            #expect(testPlugin.entry == testPlugin.entry)
        }

        @Test func optionsBecomeASchema() {
            let options = (0..<6).map { table.options[$0] }
            #expect(options.map { String(cString: $0.name) } == ["size", "count", "flag", "text", "secret", "mode"])
            #expect(
                options.map { $0.def.map { String(cString: $0) } } == ["64K", nil, "on", "", "", "safe"],
                "a count without a default must be given")
            #expect(
                options.map { Int($0.type) } == [
                    XBB_OPT_SIZE, XBB_OPT_UINT, XBB_OPT_BOOL, XBB_OPT_STRING, XBB_OPT_SECRET, XBB_OPT_ENUM,
                ])
            #expect((options[0].min, options[0].max) == (512, 1 << 60))
            #expect((options[1].min, options[1].max) == (1, 9))
            #expect((0..<2).map { String(cString: options[5].choices[$0]!) } == ["fast", "safe"])
            #expect(options[5].choices[2] == nil)
        }

        @Test func optionsComeWithTheirTypes() {
            let opened = open()
            #expect(opened.code == 0)
            table.close(opened.device)
            #expect(FakeHost.lines == ["closed after false words fast (secret) two the image"])
        }

        @Test func whatGoesWrongIsSaidInWords() {
            let stray = open(text: "stray").message
            #expect(stray == "option stray is not in the plugin's list, or the host gave no value")
            let few = open(options: 5)
            #expect(few.code == -EINVAL && few.message.contains("another number of options"))
            let large = open(size: 1 << 60)
            #expect(large.code == -ENOMEM && large.message == "no memory for the disk: Cannot allocate memory")
            let opened = open(count: 9)
            var error = xbb_error()
            #expect(table.start(opened.device, &error) == -EBUSY && message(error) == "nine is too much")
            #expect(openQueue(opened.device, depth: 0).0 == -EINVAL)
            table.close(opened.device)
        }

        @Test func loadRefusesAnotherMajorVersion() {
            var other = FakeHost.table.pointee
            other.abi_major = 2
            #expect(table.load(&other) == -EINVAL)
            other = FakeHost.table.pointee
            other.struct_size = 24
            #expect(table.load(&other) == -EINVAL)
            #expect(table.load(nil) == -EINVAL)
        }

        @Test func noObjectIsLeftAndNoneIsGivenBackEarly() {
            let before = (Living.disks.load(ordering: .relaxed), Living.queues.load(ordering: .relaxed))
            for round in 1...3 {
                let opened = open()
                let queues = (0..<round).map { _ in openQueue(opened.device).1 }
                #expect(Living.disks.load(ordering: .relaxed) == before.0 + 1)
                #expect(Living.queues.load(ordering: .relaxed) == before.1 + round)
                for queue in queues { table.queue_close(queue) }
                #expect(Living.queues.load(ordering: .relaxed) == before.1)
                var info = xbb_info()
                #expect(table.get_info(opened.device, &info) == 0 && info.size == 4096)
                table.close(opened.device)
                #expect(Living.disks.load(ordering: .relaxed) == before.0)
            }
            _ = open(text: "stray")
            #expect(Living.disks.load(ordering: .relaxed) == before.0, "an open() that fails keeps nothing")
        }

        @Test func aReadOnlyDiskHasNoWrites() {
            let opened = open(flags: Int(XBB_OPEN_RDONLY))
            var info = xbb_info()
            _ = table.get_info(opened.device, &info)
            #expect(info.caps == 0)
            let (_, queue) = openQueue(opened.device)
            #expect(submit(queue, [TestRequest(XBB_OP_WRITE, parts: [512])]) == 1)
            #expect(FakeHost.completions.map(\.status) == [-EOPNOTSUPP])
            table.queue_close(queue)
            table.close(opened.device)
        }

        @Test func requestsReachTheDiskAndComeBackOnce() {
            let opened = open()
            let (_, queue) = openQueue(opened.device)
            let write = TestRequest(XBB_OP_WRITE, offset: 512, parts: [100, 412], flags: XBB_REQ_FUA)
            write.bytes = (0..<512).map { UInt8(truncatingIfNeeded: $0 &* 7) }
            let read = TestRequest(XBB_OP_READ, offset: 512, parts: [1, 511])
            let behind = TestRequest(XBB_OP_READ, offset: 4096, parts: [512])
            #expect(submit(queue, [write, read, TestRequest(XBB_OP_FLUSH), behind]) == 4)
            #expect(FakeHost.completions.map(\.status) == [0, 0, 0, -EIO])
            #expect(FakeHost.completions.allSatisfy { $0.queue == OpaquePointer(bitPattern: 0x1000) })
            #expect(read.bytes == write.bytes)
            table.queue_close(queue)
            table.close(opened.device)
        }

        @Test func whatIsNotDeclaredIsRefusedAndCountsAsTaken() {
            let opened = open(count: 2)
            let (_, queue) = openQueue(opened.device)
            let batch = [
                TestRequest(XBB_OP_DISCARD, length: 512), TestRequest(77),
                TestRequest(XBB_OP_FLUSH, flags: XBB_REQ_FUA),
                TestRequest(XBB_OP_READ, parts: [512]), TestRequest(XBB_OP_READ, parts: [512], flags: 1 << 15),
                TestRequest(XBB_OP_READ, parts: [512]), TestRequest(XBB_OP_READ, parts: [512]),
            ]
            #expect(submit(queue, batch) == 6, "the last one stays the host's")
            #expect(FakeHost.completions.map(\.status) == [-EOPNOTSUPP, -EOPNOTSUPP, -EINVAL, 0, -EINVAL, 0])
            table.queue_close(queue)
            table.close(opened.device)
        }

        @Test func aSecretShowsNowhere() {
            let option = TestOptions.secret
            let opened = open()
            #expect(!FakeHost.lines.joined().contains("hunter2") && "\(option)".contains("secret"))
            table.close(opened.device)
            #expect(!FakeHost.lines.joined().contains("hunter2"))
        }
    }
}
