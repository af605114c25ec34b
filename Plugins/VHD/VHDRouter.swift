// SPDX-License-Identifier: BSD-2-Clause
// Where the requests of a queue go: to their place of the image, or to a helper thread.
import Glibc
import ImageCore
import ImageKit
import ImageWriting
import PluginKit
import VHDEngine

/// Looks requests up in the map of the image.
struct VHDRouter: RequestRouter {
    private let device: VHDDevice
    private let engine: VHDEngine
    private let size: UInt64
    private let isReadOnly: Bool

    init(_ device: VHDDevice) {
        self.device = device
        (engine, size, isReadOnly) = (device.engine, device.size, device.isReadOnly)
    }

    @inline(__always)
    func route(_ request: borrowing Request) -> Route {
        let (offset, length) = (request.offset, request.length)
        switch request.operation {
        case .read:
            guard isInside(offset, length) else { return .done(-EIO) }
            return route(engine.placeOfRead(offset, length))
        case .write:
            guard !isReadOnly else { return .done(-EROFS) }
            guard isInside(offset, length) else { return .done(-EIO) }
            return route(engine.placeOfWrite(offset, length))
        case .flush:
            // By the engine, which lets no two syncs end at once.
            return isReadOnly ? .done(0) : .helper
        case .discard, .writeZeroes:
            return isReadOnly ? .done(-EROFS) : .helper
        }
    }

    @inline(__always)
    private func route(_ place: Place) -> Route {
        switch place {
        case .file(let start): .file(start, token: 0)
        case .zeroes: .zeroes
        case .engine: .helper
        }
    }

    @inline(__always)
    private func isInside(_ offset: UInt64, _ length: UInt64) -> Bool {
        length > 0 && offset <= size && length <= size - offset
    }

    func ended(_ token: UInt8, _ status: Int32) { if status != 0 { engine.examineEnd() } }

    func countHelped(_ count: UInt64) { device.helped.wrappingAdd(count, ordering: .relaxed) }

    static let completed: HostComplete = { unsafe QueueState<VHDRouter>.end($0, $1, $2) }
}
