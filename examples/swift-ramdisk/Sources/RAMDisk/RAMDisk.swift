// SPDX-License-Identifier: BSD-2-Clause
// A disk in memory in Swift. Memory safety is strict, and there is no unsafe code in it.
import PluginKit
import Synchronization

private enum Options {
    static let size = PluginOption.size("size", default: "64M", in: 512...(1 << 40), help: "bytes, a multiple of 512")
}

final class RAMDisk: StorageDisk, StorageQueue {
    typealias Queue = RAMDisk
    let info: DiskInfo
    private let data: Mutex<DiskMemory>

    init(_ opening: Opening) throws(PluginError) {
        let size = try opening[Options.size]
        guard size % 512 == 0 else { throw .invalid("size is no multiple of 512") }
        // No cache, therefore nothing to flush.
        var info = DiskInfo(size: size, capabilities: [.write, .discard, .discardZeroes])
        info.maxQueues = 4
        self.info = info
        data = Mutex(try DiskMemory(size: size))
    }

    func submit(_ batch: inout RequestBatch) {
        while let request = batch.next() {
            let outcome: Outcome = data.withLock { data in
                switch request.operation {
                case .read: request.read(from: data)
                case .write: request.write(to: &data)
                case .discard: request.zero(in: &data)
                default: .unsupported
                }
            }
            request.complete(outcome)
        }
    }
}

private let plugin = Plugin(
    name: "swift-ramdisk", version: "1", description: "A disk in memory, in Swift", options: [Options.size],
    hasFile: false
) { opening throws(PluginError) in try RAMDisk(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func entry() -> PluginEntry { plugin.entry }
