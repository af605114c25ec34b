// SPDX-License-Identifier: BSD-2-Clause
// The broker's socket and its thread.
import Base
import CLinux
import Glibc
import Synchronization

/// Serves the hypervisor's socket on a thread of its own until ``stop()``.
///
/// The broker never waits for a client: a client that does not take its answer is dropped.
final class HypervisorServer: Sendable {
    private let stopEvent: Descriptor
    private let thread: Mutex<pthread_t?>

    /// Listens on `directory`/hypervisor.sock. The caller made sure that no other process serves the directory.
    init(directory: String, hooks: Hypervisor.Hooks) throws(OperationError) {
        let path = HypervisorProtocol.socketPath(directory)
        let loop = try ServerLoop(path: path, hypervisor: Hypervisor(hooks: hooks))
        stopEvent = loop.stopEvent
        thread = Mutex(try startThread(named: "xbb-hypervisor") { loop.run() })
    }

    deinit {
        stop()
    }

    /// Ends the thread and waits for it.
    func stop() {
        guard let running = thread.withLock({ $0.take() }) else { return }
        stopEvent.signal()
        pthread_join(running, nil)
    }
}

/// The state of the server's thread.
private final class ServerLoop {
    let stopEvent: Descriptor
    private let path: String
    private let hypervisor: Hypervisor
    private let listener: Descriptor
    private let poller: Descriptor
    private var connections: [Int32: (socket: Descriptor, client: HypervisorClient)] = [:]
    private var buffer = [UInt32](repeating: 0, count: HypervisorProtocol.messageWords)
    /// Closed for a moment to accept and refuse a connection when the process is out of descriptors.
    private var spare: Descriptor?

    init(path: String, hypervisor: Hypervisor) throws(OperationError) {
        self.path = path
        self.hypervisor = hypervisor
        stopEvent = try Descriptor.event()
        spare = try Descriptor.event()
        unsafe unlink(path)
        let raw = unsafe clinux_unix_listen(path, Int32(SOCK_SEQPACKET.rawValue), 128)
        if raw < 0 { throw OperationError(errno, "listen on \(path)") }
        listener = Descriptor(owning: raw)
        let poll = epoll_create1(Int32(EPOLL_CLOEXEC))
        if poll < 0 { throw OperationError(errno, "make epoll") }
        poller = Descriptor(owning: poll)
        try watch(raw)
        try watch(stopEvent.raw)
    }

    deinit {
        unsafe unlink(path)
    }

    private func watch(_ descriptor: Int32) throws(OperationError) {
        var event = unsafe epoll_event()
        unsafe event.events = EPOLLIN.rawValue
        unsafe event.data.fd = descriptor
        if unsafe epoll_ctl(poller.raw, EPOLL_CTL_ADD, descriptor, &event) != 0 {
            throw OperationError(errno, "watch socket")
        }
    }

    func run() {
        var events = unsafe [epoll_event](repeating: epoll_event(), count: 32)
        while true {
            let count = unsafe epoll_wait(poller.raw, &events, Int32(events.count), -1)
            if count < 0 && errno != EINTR { return }
            for index in 0..<Int(max(count, 0)) {
                let descriptor = unsafe events[index].data.fd
                if descriptor == stopEvent.raw {
                    for connection in connections.values { hypervisor.release(connection.client) }
                    hypervisor.shutDown()
                    return
                }
                if descriptor == listener.raw { accept() } else { serve(descriptor) }
            }
        }
    }

    private func accept() {
        let raw = clinux_accept(listener.raw)
        if raw >= 0 {
            let socket = Descriptor(owning: raw)
            if (try? watch(raw)) != nil { connections[raw] = (socket, HypervisorClient()) }
            return
        }
        if errno != EMFILE && errno != ENFILE { return }
        // The listener stays readable until the connection is accepted: accept it with the spare descriptor and drop
        // it.
        spare = nil
        let refused = clinux_accept(listener.raw)
        if refused >= 0 { close(refused) }
        spare = try? Descriptor.event()
    }

    private func serve(_ descriptor: Int32) {
        guard let (socket, client) = connections[descriptor] else { return }
        guard let message = receiveMessage(&buffer, over: socket.raw) else {
            if errno != EAGAIN { drop(descriptor) }
            return
        }
        if message.word(0) == HypervisorOperation.settle.rawValue { dropEnded(but: descriptor) }
        var answer: HypervisorAnswer
        do throws(OperationError) {
            answer = try hypervisor.serve(message, of: client)
        } catch {
            answer = HypervisorAnswer(words: [UInt32(bitPattern: error.code)], descriptors: [])
        }
        if sendMessage(answer.words, answer.descriptors.map(\.raw), over: socket.raw) < 0 { drop(descriptor) }
    }

    /// Releases what ended processes held, before their turn comes.
    private func dropEnded(but caller: Int32) {
        var entries = connections.keys.filter { $0 != caller }.map { pollfd(fd: $0, events: 0, revents: 0) }
        // The array outlives the call, which writes no more than its elements.
        guard unsafe poll(&entries, nfds_t(entries.count), 0) > 0 else { return }
        for entry in entries where entry.revents & Int16(POLLHUP) != 0 { drop(entry.fd) }
    }

    private func drop(_ descriptor: Int32) {
        guard let (_, client) = connections.removeValue(forKey: descriptor) else { return }
        hypervisor.release(client)
    }
}
