// SPDX-License-Identifier: BSD-2-Clause
// A process that prepares itself to serve a disk while another one still serves it.
//
// It does beforehand what needs no right to the disk: programs, libraries, connections. Then it says so on its channel and
// waits for a word there, and after that for the disk's lock. docs/recovery.md explains the order.
import BlockQueue
import ImageInspection
import PluginHost
import Base
import CLinux
import Glibc
import Support
import XenBus

/// What a process that stands by is told when its turn comes.
struct StandbyWord: Equatable {
    /// What it writes into the file of the lock: its own name for an xbbd that starts.
    let note: String
    /// How the process before it ended; nil: it lives, and the lock will tell.
    let predecessor: Predecessor?

    /// Reads "go 4711 123456 handed-over", or "go 4711 123456" where the process before still serves.
    init?(_ line: String) {
        let parts = line.split(separator: " ", maxSplits: 3).map(String.init)
        guard parts.count >= 3, parts[0] == "go", UInt64(parts[1]) != nil, UInt64(parts[2]) != nil else { return nil }
        note = "\(parts[1]) \(parts[2])\n"
        if parts.count == 3 {
            predecessor = nil
        } else {
            guard let end = Predecessor(parts[3]) else { return nil }
            predecessor = end
        }
    }
}

extension VBDWorker {
    /// Prepares, says that it is ready, and returns true with the lock held when it is this process's turn; false where it
    /// is not needed any more.
    func standBy(_ channel: Int32, signals: Int32) throws(OperationError) -> Bool {
        guard let lock else { throw OperationError(EINVAL, "stand by without a lock") }
        defer { close(channel) }
        // What ps(1) shows: whoever counts workers does not mean this one yet.
        unsafe pthread_setname_np(pthread_self(), "xbb-standby")
        guard case .success(let node)? = try readBackend() else {
            log.info("\(options.backendPath) does not exist any more, or breaks a rule")
            return false
        }
        try loadPlugin(node)
        KillPoint.reach(.prepared)
        guard unsafe Glibc.write(channel, "ready\n", 6) == 6 else { return false }
        guard let word = try awaitWord(channel, signals) else {
            log.info("stood by and was not needed")
            return false
        }
        KillPoint.reach(.called)
        let handedOver = try lock.take()
        KillPoint.reach(.inherited)
        lock.write(note: word.note)
        unsafe pthread_setname_np(pthread_self(), "xbb-vbd")
        predecessor = word.predecessor ?? (handedOver ? .handedOver : .killed("before it had handed over"))
        return true
    }

    /// A plugin that cannot be loaded is found out while the other process still serves.
    private func loadPlugin(_ node: BackendNode) throws(OperationError) {
        let request: DeviceRequest
        do throws(NegotiationError) {
            guard let found = try node.deviceRequest(from: options.storageSource) else { return }
            request = found
        } catch {
            return
        }
        if request.image.format.name == FormatDetection.word { return }
        let source = DiskSource(format: request.image.format.name, path: request.image.path)
        let name = try PluginDevice.pluginName(for: source, directories: options.pluginDirectories)
        _ = try PluginLibrary.load(name: name, directories: options.pluginDirectories)
    }

    /// nil where the other end is gone, or this process was told to end.
    private func awaitWord(_ channel: Int32, _ signals: Int32) throws(OperationError) -> StandbyWord? {
        var line: [UInt8] = []
        while true {
            var entries = [channel, signals].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            if unsafe poll(&entries, 2, -1) < 0 {
                if errno == EINTR { continue }
                throw OperationError(errno, "wait for the word to begin")
            }
            if entries[0].revents == 0 { return nil }
            var byte: UInt8 = 0
            let count = unsafe Glibc.read(channel, &byte, 1)
            if count < 0 && errno == EINTR { continue }
            if count <= 0 || line.count > 256 { return nil }
            if byte == UInt8(ascii: "\n") { break }
            line.append(byte)
        }
        guard let word = StandbyWord(String(decoding: line, as: UTF8.self)) else {
            throw OperationError(EPROTO, "understand the word to begin")
        }
        return word
    }
}
