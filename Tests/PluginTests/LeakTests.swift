// SPDX-License-Identifier: BSD-2-Clause
// Opening and closing leaves nothing behind: descriptors, threads, mappings.  In a process of its own each, because
// other tests open files at the same time.
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import Testing

/// Entries of a folder of /proc/self.
private func entries(_ name: String) -> Int {
    guard let folder = opendir("/proc/self/\(name)") else { return -1 }
    defer { closedir(folder) }
    var count = 0
    while readdir(folder) != nil { count += 1 }
    return count
}

/// Lines of /proc/self/maps.
private func mappings() -> Int {
    guard let file = fopen("/proc/self/maps", "r") else { return -1 }
    defer { fclose(file) }
    var count = 0
    var line = [CChar](repeating: 0, count: 4096)
    while fgets(&line, 4096, file) != nil { count += 1 }
    return count
}

/// Opens, uses and closes a disk many times; what is left then, as text, or "" if nothing is.
private func leftovers(_ round: () throws -> Void) -> String {
    func state() -> (Int, Int, Int) { (entries("fd"), entries("task"), mappings()) }
    do {
        var left = ""
        // What the runtime opens once for itself is there before the second look.
        for _ in 0..<2 {
            for _ in 0..<20 { try round() }
            let before = state()
            for _ in 0..<200 { try round() }
            let after = state()
            // A joined thread is listed for a moment more; the allocator may have grown by an arena or two.
            let isSame = after.0 <= before.0 && after.1 <= before.1 && after.2 <= before.2 + 8
            if isSame { return "" }
            left = "fds, threads, mappings: \(before) became \(after)"
        }
        return left
    } catch {
        return "\(error)"
    }
}

private func useOnce(_ plugin: Plugin, _ path: String?, _ options: [String: String]) throws {
    let disk = try Disk(plugin, path, options)
    let queues = [try Queue(disk, index: 0, depth: 8), try Queue(disk, index: 1, depth: 8)]
    for queue in queues where queue.read(0, 4096).status != 0 { throw Failure(description: "read") }
}

/// Ends the process of an exit test; what is left goes to the test over standard error.
private func report(_ left: String) -> Never {
    let words = left.isEmpty ? "NOTHING LEFT" : "LEFT \(left)"
    write(2, words, words.utf8.count)
    exit(0)
}

private func expectNothingLeft(_ result: ExitTest.Result?) {
    let words = String(decoding: result?.standardErrorContent.filter { $0 < 128 } ?? [], as: UTF8.self)
    #expect(words.contains("NOTHING LEFT"))
}

@Suite struct LeakTests {
    @Test func file() async {
        let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
            let folder = TemporaryFolder()
            let path = folder.file("disk", size: 1 << 20)
            let plugin = try Plugin("file")
            var left = ""
            for options in FilePluginTests.modes {
                left += leftovers { try useOnce(plugin, path, options) }
            }
            left += leftovers {
                // Failures clean up too.
                guard (try? Disk(plugin, folder.path, readOnly: true)) == nil else {
                    throw Failure(description: "a folder was opened")
                }
            }
            report(left)
        }
        expectNothingLeft(result)
    }

    @Test(arguments: ["null", "error", "delay"])
    func withoutFile(name: String) async {
        let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) { [name] in
            let plugin = try Plugin(name)
            let left = leftovers { try useOnce(plugin, nil, ["size": "1M"]) }
            report(left)
        }
        expectNothingLeft(result)
    }

    /// Read, written and refused.
    @Test func qcow() async {
        let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
            let folder = TemporaryFolder()
            let path = "\(folder.path)/image"
            shell(
                "qemu-img create -q -f qcow2 \(path) 4M && qemu-img create -q -f qcow2 -o refcount_bits=64 \(path).2 4M"
            )
            shell("printf '\\002' | dd of=\(path).2 bs=1 seek=79 conv=notrunc status=none")
            let plugin = try Plugin("qcow")
            var left = ""
            left += leftovers {
                let disk = try Disk(plugin, path, ["direct": "on", "threads": "2"])
                let queue = try Queue(disk)
                guard queue.write(0, [UInt8](repeating: 1, count: 65536)) == 0,
                    queue.command(XBB_OP_DISCARD, 0, 65536) == 0
                else { throw Failure(description: "write") }
            }
            left += leftovers {
                guard (try? Disk(plugin, path + ".2")) == nil else { throw Failure(description: "it is corrupt") }
                _ = try Disk(plugin, path, readOnly: true)
            }
            report(left)
        }
        expectNothingLeft(result)
    }

    @Test func rawDisk() async {
        let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
            let loop = try LoopDevice(size: 1 << 20)
            let plugin = try Plugin("rawdisk")
            let left = leftovers { try useOnce(plugin, loop.path, [:]) }
            shell("losetup -d \(loop.path)")
            report(left)
        }
        expectNothingLeft(result)
    }
}
