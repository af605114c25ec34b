// SPDX-License-Identifier: BSD-2-Clause
// A disk in memory, for the plugins that test the host.
import PluginKit
import Synchronization

/// What a plugin does in memory where it does not misbehave; any thread.
public final class MemoryDisk: Sendable {
    /// What the host is told.
    public let info: DiskInfo
    private let memory: Mutex<DiskMemory>

    /// A disk of `size` bytes, a multiple of `block` and not 0. With `file` they are that file's, so that they outlive the
    /// process; it grows to `size`. `block` is in bytes; `queues` can be open at once.
    public init(
        size: UInt64, file: String? = nil, block: UInt64 = 512, queues: UInt64 = 16
    ) throws(PluginError) {
        guard (512...4096).contains(block), block.nonzeroBitCount == 1 else {
            throw .invalid("block must be 512, 1024, 2048 or 4096")
        }
        guard size > 0, size % block == 0 else { throw .invalid("size must be a multiple of \(block) and not 0") }
        memory = Mutex(try DiskMemory(size: size, keptIn: file))
        var info = DiskInfo(
            size: size, capabilities: [.write, .flush, .force, .discard, .discardZeroes, .writeZeroes])
        info.physicalBlock = 4096
        info.logicalBlock = UInt32(block)
        info.maxQueues = UInt32(clamping: queues)
        self.info = info
    }

    /// Performs a request; a read or write only for its first `limit` bytes.
    public func perform(_ request: borrowing Request, limit: UInt64 = .max) -> Outcome {
        memory.withLock { memory in
            switch request.operation {
            case .read: request.read(from: memory, limit: limit)
            case .write: request.write(to: &memory, limit: limit)
            case .flush: .done
            case .discard, .writeZeroes: request.zero(in: &memory)
            }
        }
    }
}
