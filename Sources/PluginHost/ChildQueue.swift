// SPDX-License-Identifier: BSD-2-Clause
// A queue of a child, beside the queue of the plugin that reads from it: a request is complete when child_submit()
// returns.
import PluginPort
import Base
import CLinux
import Glibc
import PluginAPI

/// The queue of one child for one queue of a blocking plugin; used only on that queue's thread. The child's plugin blocks
/// too: one that does not reads its own children by itself.
///
/// Unsafe code here uses the port's only request slot, which no one else has while a submit() runs.
@safe
final class ChildQueue {
    private let child: HostChild
    private let device: PluginDevice
    private let port: CompletionPort
    private let host: HostQueue
    private let handle: UnsafeMutableRawPointer?

    /// Opens a queue of the child's plugin on the calling thread.
    init(_ child: HostChild, _ device: PluginDevice, index: Int) throws(OperationError) {
        self.child = child
        self.device = device
        guard
            let port = unsafe CompletionPorts.take(requestCount: 1, contextSize: Int(device.library.table.req_ctx_size))
        else { throw OperationError(.open, "no descriptor is left for a queue of \(device.source.path)") }
        port.adoptThread()
        self.port = port
        host = HostQueue(port: port, events: nil)
        do throws(OperationError) {
            unsafe handle = try device.openQueue(host, index: index, depth: 1)
        } catch {
            CompletionPorts.giveBack(port)
            throw error
        }
    }

    /// Closes the queue. Nothing may be in flight.
    func close() {
        unsafe device.closeQueue(handle, of: host)
        CompletionPorts.giveBack(port)
    }

    func serves(_ other: HostChild) -> Bool { other === child }

    /// Submits a read and waits for its completion.
    ///
    /// - Returns: 0 after `done` was called, or -EINVAL for a request that no plugin may be given.
    func submit(_ request: UnsafeMutablePointer<xbb_req>, _ done: xbb_child_fn, _ argument: UnsafeMutableRawPointer?)
        -> Int32
    {
        let (offset, length) = unsafe (request.pointee.offset, request.pointee.length)
        guard unsafe Int(request.pointee.op) == XBB_OP_READ, unsafe request.pointee.flags == 0, length > 0,
            offset % 512 == 0, length % 512 == 0, offset <= device.info.size, length <= device.info.size - offset,
            length <= device.info.maxTransfer
        else { return -EINVAL }
        let slot = port.request(0)
        unsafe slot.copy(request.pointee)
        slot.setState(PluginRequestState.plugin)
        var offered: UnsafeMutablePointer<xbb_req>? = unsafe slot.forPlugin
        unsafe device.offer(&offered, to: handle, answeringAt: port)
        while true {
            port.takeRemote()
            if port.localCount > 0 { break }
            if port.prepareToSleep() {
                var waiting = pollfd(fd: port.wakeDescriptor, events: Int16(POLLIN), revents: 0)
                unsafe poll(&waiting, 1, -1)
                port.awoke()
                port.drainWake()
            }
        }
        let status = slot.status
        port.removeCompleted(port.localCount)
        unsafe done(argument, request, status)
        return 0
    }
}
