// SPDX-License-Identifier: BSD-2-Clause
// Where the requests of a queue go: to their place of the image, or to a helper thread.
import Glibc
import ImageCore
import ImageKit
import PluginKit
import QCOW2
import QCOWEngine

/// Looks requests up in the map of the image.
@safe
struct QCOWRouter: RequestRouter {
    private let device: QCOWDevice
    private let engine: ImageEngine?
    /// The same, which is reached at the end of each request without counting references; the device outlives its queues.
    private let tokenOwner: Unmanaged<ImageEngine>?
    private let map: ClusterMap
    private let lowerSize: UInt64
    /// Where this queue counts its I/O; 0 is the helpers'.
    private let place: UInt8

    /// Of the queue with this number.
    init(_ device: QCOWDevice, queue: Int) {
        self.device = device
        (engine, map, lowerSize) = (device.engine, device.map, device.backing?.size ?? 0)
        unsafe tokenOwner = device.engine.map { unsafe Unmanaged.passUnretained($0) }
        place = UInt8(truncatingIfNeeded: queue % 31 + 1)
    }

    @inline(__always)
    func route(_ request: borrowing Request) -> Route {
        let (offset, length) = (request.offset, request.length)
        switch request.operation {
        case .read:
            guard isInside(offset, length) else { return .done(-EIO) }
            let token = engine?.begin(at: place) ?? EngineToken(number: 0)
            let found = map.placeOfRead(offset, length, lowerSize: lowerSize)
            if case .file(let start) = found { return .file(start, token: token.number) }
            engine?.end(token)
            return found == .zeroes ? .zeroes : .helper
        case .write:
            guard let engine else { return .done(-EROFS) }
            guard isInside(offset, length) else { return .done(-EIO) }
            let token = engine.begin(at: place)
            if case .file(let start) = engine.placeOfWrite(offset, length) { return .file(start, token: token.number) }
            engine.end(token)
            return .helper
        case .flush:
            guard let engine else { return .done(0) }
            // No two syncs run at once: of an error only one would learn.
            return engine.failure == 0 ? .helper : .done(engine.failure)
        case .discard, .writeZeroes:
            return engine == nil ? .done(-EROFS) : .helper
        }
    }

    /// What stands behind the end of the disk is nothing: a map would show a hole there.
    @inline(__always)
    private func isInside(_ offset: UInt64, _ length: UInt64) -> Bool {
        let size = device.size
        return length > 0 && offset <= size && length <= size - offset
    }

    @inline(__always)
    func ended(_ token: UInt8, _ status: Int32) {
        unsafe tokenOwner?._withUnsafeGuaranteedRef {
            $0.end(EngineToken(number: token))
            if status != 0 { $0.examineEnd() }
        }
    }

    func countHelped(_ count: UInt64) { device.counters.helped.wrappingAdd(count, ordering: .relaxed) }

    static let completed: HostComplete = { unsafe QueueState<QCOWRouter>.end($0, $1, $2) }
}
