// SPDX-License-Identifier: BSD-2-Clause
// A queue under test, and single requests on it.
import CPluginHarness
import Glibc
import PluginAPI

/// A queue; used only by the thread that created it.
///
/// Unsafe code here is the C harness; the handle is valid until close().
@safe
package final class Queue {
    package let handle: OpaquePointer
    package let disk: Disk
    private let isGuarded: Bool
    private var isClosed = false

    package init(_ disk: Disk, index: UInt32 = 0, depth: UInt32 = 32, guarded: Bool = false) throws(Failure) {
        var handle: OpaquePointer?
        var error = xbb_error()
        let code = unsafe harness_queue_open(disk.handle, index, depth, &handle, &error)
        guard code == 0, let opened = unsafe handle else {
            throw error.refusal(of: "queue_open() of queue \(index)", code)
        }
        unsafe self.handle = unsafe opened
        self.disk = disk
        isGuarded = guarded
    }

    /// Closes the queue, once.
    package func close() {
        if isClosed { return }
        isClosed = true
        unsafe harness_queue_close(handle)
    }

    deinit { close() }

    package func submit(_ requests: [Request]) -> Int {
        let list = unsafe requests.map { unsafe Optional($0.handle) }
        return Int(unsafe harness_submit(handle, list, UInt32(list.count)))
    }

    /// Runs the loop until at most `target` requests are in flight; returns the number in flight.
    @discardableResult
    package func run(until target: UInt32 = 0, milliseconds: Int32 = 20_000, busy: Bool = false) -> UInt32 {
        unsafe harness_run(handle, target, milliseconds, busy)
    }

    /// Runs the loop for a time.
    package func idle(milliseconds: Int32) { _ = unsafe harness_run(handle, .max, milliseconds, false) }

    /// Asks the plugin to cancel one request, or all if nil.
    package func cancel(_ request: Request?) { unsafe harness_cancel(handle, request?.handle) }

    /// Performs one request, waits for it and returns its status. If the queue accepts nothing, the request is offered
    /// again, as a host does.
    @discardableResult
    package func perform(_ request: Request) -> Int32 {
        var offers = 1
        while submit([request]) == 0 {
            offers += 1
            guard offers < 100 else { return 1 }
        }
        run()
        return request.isDone ? request.status : 2
    }

    /// Reads; returns the bytes or a negative errno.
    package func read(_ offset: UInt64, _ length: Int) -> (status: Int32, bytes: [UInt8]) {
        let request = Request(guarded: isGuarded)
        request.set(XBB_OP_READ, offset, length)
        return (perform(request), request.bytes)
    }

    package func write(_ offset: UInt64, _ bytes: [UInt8], flags: Int = 0) -> Int32 {
        let request = Request(guarded: isGuarded)
        request.set(XBB_OP_WRITE, offset, bytes.count, flags: flags)
        request.put(bytes)
        return perform(request)
    }

    package func command(_ op: Int, _ offset: UInt64 = 0, _ length: Int = 0, flags: Int = 0) -> Int32 {
        let request = Request(guarded: isGuarded)
        request.set(op, offset, length, flags: flags)
        return perform(request)
    }
}
