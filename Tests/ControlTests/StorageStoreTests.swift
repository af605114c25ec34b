// SPDX-License-Identifier: BSD-2-Clause
// Which of the open files of a worker are its storage, for an xbbd that was started anew.
import CLinux
import Foundation
import StorageKeeping
import Support
import Testing

@testable import Base
@testable import XBBControl

@Suite struct StorageStoreTests {
    private func open(_ path: String, _ flags: Int32, position: off_t) throws -> Descriptor {
        let file = try Descriptor(unsafe clinux_open(path, flags | O_CLOEXEC, 0), "open \(path)")
        lseek(file.raw, position, SEEK_SET)
        return file
    }

    /// The position is an open file's own: it tells which one a descriptor is of.
    private func position(_ file: Descriptor?) -> off_t? { file.map { lseek($0.raw, 0, SEEK_CUR) } }

    private func lock(_ file: Descriptor) {
        var range = flock()
        range.l_type = Int16(truncatingIfNeeded: F_RDLCK)
        range.l_start = 100
        range.l_len = 1
        #expect(unsafe clinux_fcntl_pointer(file.raw, clinux_F_OFD_SETLK, &range) == 0)
    }

    /// What is taken from a process that has an image open as `other`, as a worker has it, and as `third`, in this order: the positions
    /// of what would serve and of its witness. The worker's own are 100, those of the witness 200.
    private func taken(other: Int32, isLocked: Bool, hasWitness: Bool = true) throws -> [off_t?] {
        var name = Array("/tmp/xbb-store-XXXXXX".utf8CString)
        let isMade = unsafe mkdtemp(&name) != nil
        try #require(isMade)
        let folder = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let path = "\(folder)/image"
        try Data(count: 4096).write(to: URL(fileURLWithPath: path))
        let served = try open(path, O_RDWR, position: 100)
        if isLocked { lock(served) }
        let witness = hasWitness ? KeptStorage.Image.openWitness(of: served.raw) : try open(path, O_RDONLY, position: 0)
        let third = try #require(witness)
        lseek(third.raw, 200, SEEK_SET)
        let process = try WorkerProcess.spawn(
            ["/bin/sleep", "60"], kept: try open(path, other, position: 300), second: served, third: third)
        defer {
            process.send(SIGKILL)
            _ = process.takeExit()
        }
        let store = StorageStore(ServiceManager(), try RunDirectory(folder), Log(name: "test"))
        let address = try #require(VBDAddress(kind: "vbd", domain: 1, device: 51712))
        let image = try #require(KeptStorage.Image(path: path, format: "raw", file: served))
        store.put(try #require(KeptStorage([image])), of: address)
        let kept = try #require(store.take(address, from: process))
        #expect(kept.images.count == 1)
        return [position(kept.images.first?.file), position(kept.images.first?.witness)]
    }

    @Test("a plugin's claim of a device is not taken for the witness, whatever its number is") func claim() throws {
        #expect(try taken(other: O_RDONLY, isLocked: true) == [100, 200])
        #expect(try taken(other: O_RDONLY, isLocked: false) == [100, 200])
    }

    @Test("what has the lock serves, and not what a plugin opened for itself") func lock() throws {
        #expect(try taken(other: O_RDWR, isLocked: true) == [100, 200])
    }

    @Test("without a witness nothing else is taken for it") func noWitness() throws {
        #expect(try taken(other: O_RDONLY, isLocked: true, hasWitness: false) == [100, nil])
    }
}
