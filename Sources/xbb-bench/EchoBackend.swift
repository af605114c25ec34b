// SPDX-License-Identifier: BSD-2-Clause
// The C echo backend on a thread, with the same event channel as ours.
import BlockQueue
import Base
import CEcho
import CLinux
import Glibc
import Memory
import Xen
import XenLoopback

/// Runs `cecho_serve` on a thread until ``end()``.
///
/// `@unchecked Sendable`: the thread has the handles to itself until end() has joined it; `stop` is the only word that
/// both sides use.
@safe
final class EchoBackend: @unchecked Sendable {
    private let grants: LoopbackGrantTable
    private let channels: LoopbackEventChannels
    private let mapping: GrantMapping
    private let channel: EventPort
    private let stop: UnsafeMutablePointer<UInt32>
    private var thread = pthread_t()

    init(platform: LoopbackPlatform, ring: [UInt32], domain: DomainID, port: EventPort) throws(OperationError) {
        grants = try platform.openGrants()
        channels = try platform.openEvents()
        mapping = try grants.map(ring, of: domain, writable: true)
        channel = try channels.bind(port, of: domain)
        unsafe stop = .allocate(capacity: 1)
        unsafe stop.initialize(to: 0)
        let context = unsafe Unmanaged.passRetained(self).toOpaque()
        let result = unsafe pthread_create(
            &thread, nil,
            { argument in
                guard let argument = unsafe argument else { return nil }
                unsafe Unmanaged<EchoBackend>.fromOpaque(argument).takeUnretainedValue().serve(argument)
                return nil
            }, context)
        if result != 0 { throw OperationError(result, "start a thread") }
    }

    private func serve(_ context: UnsafeMutableRawPointer) {
        let pages = mapping.pages
        _ = unsafe cecho_serve(
            pages.address, pages.byteCount, stop, context,
            { argument in
                guard let argument = unsafe argument else { return }
                let echo = unsafe Unmanaged<EchoBackend>.fromOpaque(argument).takeUnretainedValue()
                do throws(OperationError) { try echo.channels.notify(echo.channel) } catch {}
            },
            { argument in
                guard let argument = unsafe argument else { return }
                unsafe Unmanaged<EchoBackend>.fromOpaque(argument).takeUnretainedValue().sleep()
            })
    }

    private func sleep() {
        do throws(OperationError) {
            try channels.unmask(channel)
            var entry = pollfd(fd: channels.fileDescriptor, events: Int16(POLLIN), revents: 0)
            _ = unsafe poll(&entry, 1, 100)
            while try channels.takePending() != nil {}
        } catch {}
    }

    /// Stops the thread and waits for it.
    func end() {
        unsafe stop.pointee = 1
        pthread_join(thread, nil)
        do throws(OperationError) {
            try channels.unbind(channel)
            try grants.unmap(mapping)
        } catch {}
        unsafe Unmanaged.passUnretained(self).release()
    }
}
