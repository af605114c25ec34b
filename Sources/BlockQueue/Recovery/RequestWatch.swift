// SPDX-License-Identifier: BSD-2-Clause
// Which request of a queue has been on its way for the longest time: seen from outside, at no cost for the request.
import Blkif
import Memory
import Xen

/// A request that was taken and is not answered.
package struct UnansweredRequest: Sendable, Equatable {
    /// Counted from 1 since the connection began.
    package let number: UInt64
    /// For operators: "write".
    package let operation: String
    /// In sectors of 512 bytes; both 0 for a flush. No length of an indirect request: it stands in pages of the guest.
    package let firstSector: UInt64
    package let sectorCount: UInt64
    /// For operators: "write of 4096 bytes at 1048576".
    package let text: String
}

extension QueueJournalSource {
    /// The first of the requests that were taken and not answered, as the journal has it at this moment.
    ///
    /// The queue's thread goes on writing there: a request that is answered meanwhile may be taken for one that is not, and
    /// is another one the next time somebody looks. One that does not move is read as it is.
    func oldestRequest(layout: RingLayout, disk: OfferedFeatures, entries: Int) -> UnansweredRequest? {
        let pages = mapping.queue(index)
        guard pages.byteCount >= JournalLayout.queueSize(entries: entries) else { return nil }
        var oldest: (number: UInt64, index: Int32)?
        for index in 0..<Int32(entries) {
            let offset = JournalLayout.slot(index)
            let number = pages.load64(at: offset + JournalLayout.takenOffset)
            if number == 0 || pages.load64(at: offset + JournalLayout.answerOffset) != 0 { continue }
            if number < oldest?.number ?? .max { oldest = (number, index) }
        }
        guard let oldest else { return nil }
        var slot = SlotBytes()
        let offset = JournalLayout.slot(oldest.index)
        pages.copySlot(at: offset + JournalLayout.bytesOffset, byteCount: SlotBytes.byteCount, into: &slot)
        let parsed = ParsedRequest()
        guard parsed.read(slot, layout: layout, disk: disk) == nil else {
            return UnansweredRequest(
                number: oldest.number, operation: "request", firstSector: 0, sectorCount: 0, text: "request")
        }
        let request = parsed.request
        return UnansweredRequest(
            number: oldest.number, operation: request.name, firstSector: request.firstSector,
            sectorCount: request.sectorCount, text: request.text)
    }
}
