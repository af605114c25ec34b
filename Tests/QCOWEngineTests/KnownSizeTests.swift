// SPDX-License-Identifier: BSD-2-Clause
// The known size of a file beside a thread that makes it longer and shorter, and beside somebody who cuts it off.
import Dispatch
import ImageWriting
import Synchronization
import Testing

@Suite struct KnownSizeTests {
    /// A file that has a size and nothing else.
    private final class File: Sendable {
        let size = Atomic<UInt64>(65_536)
        let known = KnownSize(65_536)
        var cutOff: UInt64? { known.cutOff { size.load(ordering: .sequentiallyConsistent) } }

        func resize(to bytes: UInt64) {
            known.change { set in
                if bytes < known.bytes { set(bytes) }
                size.store(bytes, ordering: .sequentiallyConsistent)
                set(bytes)
            }
        }

        /// As a file grows by what is written behind its end: the size is known before.
        func extend(to bytes: UInt64) {
            known.change { set in
                set(bytes)
                size.store(bytes, ordering: .sequentiallyConsistent)
            }
        }
    }

    /// Who looks while the size changes finds no file that was cut off.
    @Test func aChangeOfTheSizeIsNoCut() {
        let file = File()
        let isOver = Atomic<Bool>(false)
        let found = Atomic<Int>(0)
        DispatchQueue.concurrentPerform(iterations: 2) { index in
            if index == 0 {
                while !isOver.load(ordering: .acquiring) {
                    if file.cutOff != nil { found.wrappingAdd(1, ordering: .relaxed) }
                }
            } else {
                for _ in 0..<200_000 {
                    file.resize(to: 131_072)
                    file.extend(to: 196_608)
                    file.resize(to: 65_536)
                }
                isOver.store(true, ordering: .releasing)
            }
        }
        #expect(found.load(ordering: .relaxed) == 0, "looks that found that somebody had cut the file off")
        #expect(file.cutOff == nil)
    }

    @Test func aCutIsFound() {
        let file = File()
        file.size.store(4096, ordering: .sequentiallyConsistent)
        #expect(file.cutOff == 4096)
        // In the middle of a change nobody can tell, and afterwards it is found.
        file.known.change { set in
            set(131_072)
            #expect(file.cutOff == nil)
        }
        #expect(file.cutOff == 4096)
        #expect(file.known.cutOff { nil } == nil)
        file.size.store(1 << 20, ordering: .sequentiallyConsistent)
        #expect(file.cutOff == nil)
    }

    /// A change between the two looks, to the step.
    @Test(arguments: [UInt64(4096), 131_072]) func aChangeBetweenTheLooks(size: UInt64) {
        let file = File()
        let found = file.known.cutOff {
            file.resize(to: size)
            return 4096
        }
        #expect(found == nil)
    }
}
