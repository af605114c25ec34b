// SPDX-License-Identifier: BSD-2-Clause
// When a plugin may do what, who owns what at which time, and what is never allowed (rules 7 and 9).
import CPluginHarness
import Glibc
import PluginAPI

extension Check {
    static let ownership = [
        Check(.ownership, "late", "nothing of a request is touched after its completion, also a while later") {
            bench throws(Failure) in
            let disk = try bench.disk()
            let info = try bench.info(disk)
            let queue = try bench.queue(disk)
            let block = Int(info.logicalBlock)
            let requests = (0..<64).map { index in
                let op = index % 2 == 0 && info.capabilities.contains(.write) ? XBB_OP_WRITE : XBB_OP_READ
                let request = Request(op, UInt64(index) % (info.size / UInt64(block)) * UInt64(block), block)
                return request
            }
            bench.at("64 requests in flight")
            try bench.performAll(requests, on: queue)
            bench.at("a while after the last completion")
            queue.idle(milliseconds: 100)
            bench.close(disk, [queue])
            bench.at("a while after close()")
            usleep(100_000)
        },
        Check(.ownership, "write-buffers", "the data of a write is not changed by it") { bench throws(Failure) in
            let disk = try bench.disk()
            let info = try bench.info(disk)
            try require(info.capabilities.contains(.write), skipping: "the disk cannot be written")
            let queue = try bench.queue(disk)
            for length in info.lengths(info.maxTransfer) {
                let data = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8) }
                let request = Request(XBB_OP_WRITE, 0, length)
                request.put(data)
                try bench.perform(request, on: queue)
                try require(
                    request.bytes == data,
                    "a \(request.name) changed its buffers, which are the guest's: copy what has to be changed")
            }
            bench.close(disk, [queue])
        },
    ]

    static let phases = [
        Check(.phases, "threads", "there are no threads before start()", need: .disk) { bench throws(Failure) in
            let before = Residue.entries("task").count
            _ = try bench.plugin
            try require(
                Residue.entries("task").count == before, "load() starts a thread: start() is the first to do so")
            let disk = try bench.disk(started: false)
            try require(
                Residue.entries("task").count == before,
                "open() starts a thread, before privileges are dropped: start() is the first to do so")
            bench.at("start()")
            try disk.start()
            bench.close(disk, [])
        },
        Check(.phases, "process", "directory, umask, locale, limits, signals and processes stay as they are") {
            bench throws(Failure) in
            // A change of the working directory is visible there.
            _ = unsafe chdir(bench.subject.folder)
            let state = ProcessState()
            _ = try bench.plugin
            try state.check(after: "load()")
            let disk = try bench.disk(started: false)
            try state.check(after: "open()")
            bench.at("start()")
            try disk.start()
            try state.check(after: "start()")
            let queue = try bench.queue(disk)
            try state.check(after: "queue_open()")
            try bench.perform(bench.firstRead(disk), on: queue)
            try state.check(after: "submit()")
            queue.close()
            try state.check(after: "queue_close()")
            disk.close()
            try state.check(after: "close()")
        },
        Check(.phases, "files", "no file is opened after open() returned") { bench throws(Failure) in
            let disk = try bench.disk()
            let before = namedFiles()
            let info = try bench.info(disk)
            let queue = try bench.queue(disk)
            try bench.perform(bench.firstRead(disk), on: queue)
            if info.capabilities.contains(.write) {
                let request = Request(XBB_OP_WRITE, 0, Int(info.logicalBlock))
                try bench.perform(request, on: queue)
            }
            let opened = namedFiles().subtracting(before)
            try require(
                opened.isEmpty,
                "\(opened.sorted().prefix(3).joined(separator: ", ")) was opened after open() had returned: a confined "
                    + "worker opens nothing then")
            bench.close(disk, [queue])
        },
        Check(.phases, "sockets", "after open() there are no new sockets but those that the plugin's flags tell of") {
            bench throws(Failure) in
            let isNetwork = try bench.plugin.library.isNetwork
            let disk = try bench.disk(started: false)
            let before = sockets()
            bench.at("start()")
            try disk.start()
            let info = try bench.info(disk)
            let queue = try bench.queue(disk)
            try bench.perform(bench.firstRead(disk), on: queue)
            if info.capabilities.contains(.write) {
                try bench.perform(Request(XBB_OP_WRITE, 0, Int(info.logicalBlock)), on: queue)
            }
            for (name, family) in sockets() where before[name] == nil {
                try require(
                    family == AF_INET || family == AF_INET6,
                    "a socket of family \(family) was made after open() had returned, which a confined worker cannot do "
                        + "(1: Unix; a socketpair is one, too): connect in open()")
                try require(
                    isNetwork,
                    "a socket was made after open() had returned, and the plugin is not XBB_PLUGIN_NETWORK: a confined worker cannot do that"
                )
            }
            bench.close(disk, [queue])
        },
        Check(.phases, "unused", "a disk can be closed without a queue, and a queue without a request") {
            bench throws(Failure) in
            let unstarted = try bench.disk(started: false)
            bench.close(unstarted, [])
            bench.close(try bench.disk(), [])
            let disk = try bench.disk()
            bench.close(disk, [try bench.queue(disk)])
            let again = try bench.disk()
            for _ in 0..<3 {
                let queue = try bench.queue(again)
                try bench.perform(bench.firstRead(again), on: queue)
                queue.close()
            }
            bench.close(again, [])
        },
    ]
}

/// The sockets that this process has, by their names, and the family of each.
private func sockets() -> [String: Int32] {
    var families: [String: Int32] = [:]
    for entry in Residue.entries("fd") {
        var target = [CChar](repeating: 0, count: 64)
        guard let descriptor = Int32(entry), unsafe readlink("/proc/self/fd/\(entry)", &target, target.count) > 7 else {
            continue
        }
        let name = String(decoding: target.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        var (family, size) = (Int32(0), socklen_t(MemoryLayout<Int32>.size))
        if unsafe name.hasPrefix("socket:") && getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &family, &size) == 0 {
            families[name] = family
        }
    }
    return families
}

/// The names of the files that this process has open.
private func namedFiles() -> Set<String> {
    var names: Set<String> = []
    for entry in Residue.entries("fd") {
        var target = [CChar](repeating: 0, count: 4096)
        let length = unsafe readlink("/proc/self/fd/\(entry)", &target, target.count)
        guard length > 0 else { continue }
        let name = String(decoding: target.prefix(length).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        if name.hasPrefix("/"), !name.hasPrefix("/proc/") { names.insert(name) }
    }
    return names
}
