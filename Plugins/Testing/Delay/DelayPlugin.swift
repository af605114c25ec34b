// SPDX-License-Identifier: BSD-2-Clause
// xbb-delay: a disk in memory that completes late, from a thread of its own, and out of order if told so.
import PluginKit

/// What can be configured.
enum DelayOption {
    static let size = PluginOption.size(
        "size", default: "64M", in: 512...(16 << 30), help: "size of the disk, a multiple of 512")
    static let delay = PluginOption.count(
        "delay-us", default: 1000, in: 0...600_000_000, help: "microseconds from submission to completion")
    static let reorder = PluginOption.bool(
        "reorder", default: false, help: "a random delay up to twice that, and random order among those due")
    static let hold = PluginOption.count(
        "hold", default: 0, in: 0...65536, help: "complete as soon as so many wait, or after their delay; 0: never")
    static let seed = PluginOption.count("seed", default: 1, in: 0...(1 << 62), help: "of the random order")
    static let keep = PluginOption.bool(
        "keep", default: false, help: "the memory is the file at the disk's path, and outlives the process")
    static let block = PluginOption.size(
        "block", default: "512", in: 512...4096, help: "bytes of a block: 512, 1024, 2048 or 4096")
    static let queues = PluginOption.count("queues", default: 16, in: 1...64, help: "the most queues at once")
    static let stuckAt = PluginOption.count(
        "stuck-at", default: 16 << 30, in: 0...(16 << 30), help: "what begins at this byte takes ten minutes")
    static let hurries = PluginOption.bool(
        "hurries", default: true, help: "complete at once when the host asks for it, as a disk is taken away")
    static let all: [any OptionSchema] = [size, delay, reorder, hold, seed, keep, block, queues, stuckAt, hurries]
}

private let plugin = Plugin(
    name: "delay", version: "1.0", description: "Disk in memory that completes late, for tests",
    formats: ["delay", "raw"], options: DelayOption.all, hasFile: false
) { opening throws(PluginError) in try DelayDevice(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func delayPluginEntry() -> PluginEntry { plugin.entry }
