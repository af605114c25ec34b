// SPDX-License-Identifier: BSD-2-Clause
// Requests: bounds of their data, and completion exactly once, also of those that are dropped.
import Glibc
import PluginAPI
import Synchronization
import Testing

@testable import PluginKit

extension PluginKitSuite {
    @Suite struct RequestTests {
        init() { FakeHost.reset() }

        private func request(_ test: TestRequest) -> Request {
            Request(test.pointer, queue: nil, complete: FakeHost.table.pointee.complete)
        }

        @Test func aDroppedRequestFails() {
            let test = TestRequest(XBB_OP_READ, parts: [512])
            do { _ = request(test) }
            #expect(FakeHost.completions == [Completion(request: test.pointer, queue: nil, status: -EIO)])
        }

        @Test func aCompletedOneIsCompletedOnce() {
            for (outcome, status): (Outcome, Int32) in [
                (.done, 0), (.unsupported, -EOPNOTSUPP), (.ioError, -EIO), (.failed(ENOSPC), -ENOSPC),
                (.failed(-ENOSPC), -EIO), (.failed(0), -EIO), (.failed(.max), -EIO),
            ] {
                FakeHost.reset()
                let test = TestRequest(XBB_OP_WRITE, parts: [512])
                request(test).complete(outcome)
                #expect(FakeHost.completions.map(\.status) == [status])
            }
        }

        @Test func aListKeepsTheOrderAndFailsWhatIsLeft() {
            let tests = (0..<5).map { _ in TestRequest(XBB_OP_READ, parts: [512]) }
            do {
                var list = RequestList()
                for test in tests { list.append(request(test)) }
                #expect(list.count == 5 && !list.isEmpty && FakeHost.completions.isEmpty)
                for _ in 0..<3 { list.removeFirst()?.complete() }
                #expect(list.count == 2)
            }
            #expect(FakeHost.completions.map(\.request) == tests.map(\.pointer))
            #expect(FakeHost.completions.map(\.status) == [0, 0, 0, -EIO, -EIO])
            var empty = RequestList()
            let nothing = empty.removeFirst() == nil
            #expect(nothing)
        }

        @Test func dataStayWithinTheDisk() throws {
            for (offset, length, isWithin) in [
                (0, 1024, true), (512, 512, true), (1024, 0, true), (1024, 1, false), (513, 512, false),
                (UInt64.max, 1, false), (UInt64.max - 1, UInt64.max, false), (0, 1025, false),
            ] as [(UInt64, UInt64, Bool)] {
                var memory = try DiskMemory(size: 1024)
                let expected: Outcome = isWithin ? .done : .ioError
                let parts = [Int(min(length, 2048))]
                for operation in [XBB_OP_READ, XBB_OP_WRITE, XBB_OP_DISCARD] {
                    let test = TestRequest(operation, offset: offset, parts: parts, length: length)
                    let request = request(test)
                    let outcome: Outcome =
                        switch request.operation {
                        case .read: request.read(from: memory)
                        case .write: request.write(to: &memory)
                        default: request.zero(in: &memory)
                        }
                    #expect(outcome == expected, "\(operation) at \(offset), \(length) bytes")
                    request.complete()
                }
            }
        }

        @Test func partsAreWalkedFromAnyPosition() {
            let content = (0..<300).map { UInt8(truncatingIfNeeded: $0 &* 31) }
            for sizes in [[300], [1, 299], [100, 0, 100, 100], [299, 1]] {
                for position in [0, 1, 99, 100, 150, 299, 300, 301] as [UInt64] {
                    let write = TestRequest(XBB_OP_WRITE, parts: sizes)
                    write.bytes = content
                    var target = [UInt8](repeating: 0, count: 64)
                    let source = request(write)
                    let copied = source.copy(to: &target, from: position)
                    source.complete()
                    let expected = content.dropFirst(Int(position)).prefix(64)
                    #expect(copied == expected.count && Array(target.prefix(copied)) == Array(expected))

                    let read = TestRequest(XBB_OP_READ, parts: sizes)
                    let sink = request(read)
                    let filled = sink.fill(from: [UInt8](repeating: 1, count: 64), at: position)
                    sink.complete()
                    #expect(filled == expected.count)
                    #expect(read.bytes.filter { $0 == 1 }.count == filled)
                    #expect(read.bytes.prefix(Int(position)).allSatisfy { $0 == 0xee })
                }
            }
            let read = TestRequest(XBB_OP_READ, parts: [10, 20])
            let zeroes = request(read)
            zeroes.fillWithZeroes()
            zeroes.complete()
            #expect(read.bytes.allSatisfy { $0 == 0 })
        }

        @Test func requestsGoToAThreadAndEndWithIt() throws {
            let mailbox = RequestMailbox()
            let tests = (0..<100).map { _ in TestRequest(XBB_OP_READ, parts: [512]) }
            let thread = try PluginThread {
                while let request = mailbox.take() { request.complete() }
            }
            for test in tests { mailbox.put(request(test)) }
            mailbox.close()
            thread.join()
            #expect(FakeHost.completions.map(\.request) == tests.map(\.pointer))
            #expect(FakeHost.completions.allSatisfy { $0.status == 0 })
            FakeHost.reset()
            mailbox.put(request(tests[0]))
            #expect(FakeHost.completions.map(\.status) == [-EIO])
            let nothing = mailbox.take() == nil
            #expect(nothing)
        }

        @Test func aThreadGetsNoSignals() throws {
            final class Body: ThreadBody {
                nonisolated(unsafe) var isBlocked = false
                func run() {
                    var mask = sigset_t()
                    pthread_sigmask(SIG_SETMASK, nil, &mask)
                    isBlocked = sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGPIPE) == 1
                }
            }
            let body = Body()
            try PluginThread(body).join()
            #expect(body.isBlocked)
        }
    }
}
