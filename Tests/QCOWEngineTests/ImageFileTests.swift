// SPDX-License-Identifier: BSD-2-Clause
// The file of an image beside threads that make it longer and shorter, and beside somebody who cuts it off.
import Foundation
import ImageKit
import ImageWriting
import Synchronization
import TestSupport
import Testing

@Suite struct ImageFileTests {
    /// Who looks while the size changes finds no file that was cut off; afterwards one that is.
    @Test func aChangeOfTheSizeIsNoCut() throws {
        let path = NSTemporaryDirectory() + "xbb-image-file-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        #expect(FileManager.default.createFile(atPath: path, contents: Data(count: 65536)))
        defer { try? FileManager.default.removeItem(atPath: path) }
        let handle = try FileHandle(forUpdating: URL(fileURLWithPath: path))
        let file = try ImageFile(fd: handle.fileDescriptor)
        defer { file.finish() }
        let isOver = Atomic<Bool>(false)
        let found = Mutex(0)
        let failure = Mutex<Int32>(0)
        DispatchQueue.concurrentPerform(iterations: 2) { index in
            if index == 0 {
                while !isOver.load(ordering: .acquiring) {
                    if file.cutOffSize != nil { found.withLock { $0 += 1 } }
                }
            } else {
                let code = Self.changeSize(of: file, times: 20_000)
                failure.withLock { $0 = code }
                isOver.store(true, ordering: .releasing)
            }
        }
        #expect(failure.withLock { $0 } == 0)
        #expect(found.withLock { $0 } == 0, "looks that found that somebody had cut the file off")
        #expect(file.cutOffSize == nil)
        try handle.truncate(atOffset: 4096)
        #expect(file.cutOffSize == 4096)
    }

    /// Makes it longer and shorter, also by what is written behind its end: 0 or the first error.
    private static func changeSize(of file: ImageFile, times: Int) -> Int32 {
        let footer = [UInt8](repeating: 7, count: 512)
        for _ in 0..<times {
            for code in [
                file.setSize(131_072), footer.withUnsafeBytes { file.extend($0.bytes, at: 196_608) },
                file.setSize(65_536),
            ] where code != 0 { return code }
        }
        return 0
    }
}
