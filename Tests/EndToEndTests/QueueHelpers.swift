// SPDX-License-Identifier: BSD-2-Clause
// Single requests on a queue, and their answers.
import Blkfront
import Blkif
import Foundation
import Memory

/// Foundation has a class of this name.
typealias BlockOperation = Blkif.BlockOperation

extension FrontQueue {
    /// A free slot, or an error.
    mutating func slot() throws -> Int {
        guard let id = allocate() else { throw LabError("no free slot") }
        return id
    }

    /// One request and its status; its slot is free again.
    mutating func status(
        _ operation: BlockOperation, sector: UInt64, byteCount: Int, fill: UInt8? = nil
    ) throws -> Int16 {
        let id = try slot()
        if let fill { buffer(of: id)[0..<byteCount].initializeMemory(as: UInt8.self, repeating: fill) }
        try submit(id, operation, sector: sector, byteCount: byteCount)
        try publish()
        return try finish(id)
    }

    /// A read and what it brought.
    mutating func read(sector: UInt64, byteCount: Int) throws -> (status: Int16, bytes: [UInt8]) {
        let id = try slot()
        buffer(of: id)[0..<byteCount].initializeMemory(as: UInt8.self, repeating: 0xa5)
        try submit(id, .read, sector: sector, byteCount: byteCount)
        try publish()
        let completion = try next()
        let bytes = Array(buffer(of: completion.id)[0..<byteCount])
        release(completion.id)
        return (completion.status, bytes)
    }

    /// Any bytes as a request, and the status of the answer.
    mutating func raw(_ make: (UInt64) -> SlotBytes) throws -> Int16 {
        let id = try slot()
        submitRaw(make(UInt64(id)), expecting: id)
        try publish()
        return try finish(id)
    }

    mutating func finish(_ id: Int) throws -> Int16 {
        let completion = try next()
        release(completion.id)
        return completion.status
    }

    /// The next response, or an error after thirty seconds.
    mutating func next() throws -> FrontCompletion {
        for _ in 0..<300 {
            if let completion = try nextCompletion() { return completion }
            _ = try wait(timeout: 100)
        }
        throw LabError("no response in 30 s")
    }
}

extension SlotBytes {
    /// The same request under an id whose answer is awaited, with the id of the native layout.
    func with(id: UInt64) -> SlotBytes {
        var copy = self
        copy.store(id, at: RingLayout(.native).idOffset)
        return copy
    }
}

/// Ends a grant that a test made; false if the backend still uses it.
func guest(_ lab: Lab, ends reference: UInt32) -> Bool { lab.guest.endAccess(reference) }
