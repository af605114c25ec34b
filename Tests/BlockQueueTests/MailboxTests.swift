// SPDX-License-Identifier: BSD-2-Clause
// A plugin that never stops talking does not keep the control thread from hearing of the queues.
import BlockQueue
import Testing

@testable import XBBHost

@Suite struct MailboxTests {
    @Test func whatTheControlThreadWaitsForIsNeverDropped() throws {
        let mailbox = try Mailbox()
        for number in UInt32.min..<1000 { mailbox.post(.notified(number)) }
        mailbox.post(.queueEnded)
        mailbox.post(.queuePaused)
        for queue in 0..<64 { mailbox.post(.replayed(queue)) }
        let messages = mailbox.take()
        #expect(messages.contains(.queueEnded) && messages.contains(.queuePaused))
        #expect((0..<64).allSatisfy { messages.contains(.replayed($0)) })
        #expect(messages.count <= 64 + 2 + 64, "what a plugin makes up is bounded")
        #expect(mailbox.take().isEmpty)
    }

    @Test func theSameIsSaidOnce() throws {
        let mailbox = try Mailbox()
        for _ in 0..<3 { mailbox.post(.queueEnded) }
        #expect(mailbox.take() == [.queueEnded])
        mailbox.post(.queueEnded)
        #expect(mailbox.take() == [.queueEnded], "and again after it was heard")
    }
}
