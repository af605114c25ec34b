// SPDX-License-Identifier: BSD-2-Clause
// Every phase of a reqlist against every event: the one function that says how a list goes on.
import Blkif
import Glibc
import Testing

@testable import BlockQueue

private let writeThrough = DiskTraits(blockMask: 4095, hasFlush: false, hasFUA: false)
private let cached = DiskTraits(blockMask: 4095, hasFlush: true, hasFUA: false)
private let cachedWithFUA = DiskTraits(blockMask: 4095, hasFlush: true, hasFUA: true)
private let disks = [writeThrough, cached, cachedWithFUA]

/// What follows an event in a phase, for lists and disks that `change` makes out of a write of whole blocks.
private struct Row: CustomTestStringConvertible, Sendable {
    var phase: ReqlistPhase
    var event: ReqlistEvent
    var operation = BlockOperation.write
    var data = ReqlistData.wholeBlocks
    var isSplit = false
    var requestCount: Int32 = 1
    var failure: Int32 = 0
    /// All disks must agree where there are several.
    var disks: [DiskTraits]
    var expected: ReqlistStep

    init(
        _ phase: ReqlistPhase, _ event: ReqlistEvent, _ operation: BlockOperation, _ data: ReqlistData = .wholeBlocks,
        split: Bool = false, requests: Int32 = 1, failure: Int32 = 0, on disks: [DiskTraits] = disks,
        _ expected: ReqlistStep
    ) {
        self.phase = phase
        self.event = event
        self.operation = operation
        self.data = data
        isSplit = split
        requestCount = requests
        self.failure = failure
        self.disks = disks
        self.expected = expected
    }

    var state: ReqlistState {
        ReqlistState(
            operation: operation, phase: phase, isSplit: isSplit, data: data, requestCount: requestCount,
            failure: failure)
    }

    var testDescription: String {
        "\(operation) \(data) \(phase) \(event) split \(isSplit) of \(requestCount) failure \(failure)"
    }
}

private let begun = ReqlistEvent.begun(skipsFlush: false)
private let skipping = ReqlistEvent.begun(skipsFlush: true)

/// A list has its memory, whichever phase it waited in for that.
private let beginnings: [Row] = [.collecting, .waitingForDrain, .waitingForMemory].flatMap { phase in
    [
        Row(phase, begun, .read, .transfer),
        Row(phase, begun, .read, .partialBlocks, .transfer),
        Row(phase, begun, .write, .copyIn),
        Row(phase, begun, .write, .partialBlocks, .fillBlocks),
        Row(phase, begun, .discard, .none, .discard),
        Row(phase, begun, .flush, .none, on: [writeThrough], .finish),
        Row(phase, begun, .flush, .wholeBlocks, on: [writeThrough], .copyIn),
        Row(phase, begun, .flush, .partialBlocks, on: [writeThrough], .fillBlocks),
        Row(phase, begun, .flush, .none, on: [cached, cachedWithFUA], .flush(.flushBefore)),
        Row(phase, begun, .flush, .wholeBlocks, on: [cached, cachedWithFUA], .flush(.flushBefore)),
        Row(phase, begun, .writeBarrier, .none, on: [writeThrough], .finish),
        Row(phase, begun, .writeBarrier, on: [writeThrough], .copyIn),
        Row(phase, begun, .writeBarrier, .none, on: [cached, cachedWithFUA], .flush(.flushBefore)),
        Row(phase, begun, .writeBarrier, on: [cached, cachedWithFUA], .flush(.flushBefore)),
        // A tunable leaves the flush out, and never the data.
        Row(phase, skipping, .flush, .none, .finish),
        Row(phase, skipping, .flush, .wholeBlocks, .copyIn),
        Row(phase, skipping, .flush, .partialBlocks, .fillBlocks),
    ]
}

/// The plugin did all parts of a phase.
private let completions: [Row] = [
    Row(.flushBefore, .completed, .flush, .none, .finish),
    Row(.flushBefore, .completed, .flush, .wholeBlocks, .copyIn),
    Row(.flushBefore, .completed, .flush, .partialBlocks, .fillBlocks),
    Row(.flushBefore, .completed, .writeBarrier, .none, .finish),
    Row(.flushBefore, .completed, .writeBarrier, .wholeBlocks, .copyIn),
    Row(.flushBefore, .completed, .writeBarrier, .partialBlocks, .fillBlocks),
    Row(.fillBlocks, .completed, .write, .partialBlocks, .copyIn),
    Row(.fillBlocks, .completed, .flush, .partialBlocks, .copyIn),
    Row(.fillBlocks, .completed, .writeBarrier, .partialBlocks, .copyIn),
    Row(.transfer, .completed, .read, .copyOut),
    Row(.transfer, .completed, .read, requests: 5, .copyOut),
    Row(.transfer, .completed, .write, .finish),
    Row(.transfer, .completed, .flush, .finish),
    Row(.transfer, .completed, .discard, .none, .finish),
    Row(.transfer, .completed, .writeBarrier, on: [writeThrough, cachedWithFUA], .finish),
    Row(.transfer, .completed, .writeBarrier, on: [cached], .flush(.flushAfter)),
    Row(.flushAfter, .completed, .writeBarrier, .finish),
]

/// The plugin failed a part of a phase.
private let failures: [Row] =
    [BlockOperation.read, .write, .writeBarrier, .flush, .discard].flatMap { operation in
        [ReqlistPhase.flushBefore, .fillBlocks, .transfer, .flushAfter].flatMap { phase in
            [
                Row(phase, .completed, operation, failure: -EIO, .fail(.error)),
                Row(phase, .completed, operation, failure: -ENOSPC, .fail(.error)),
                Row(phase, .completed, operation, failure: -EOPNOTSUPP, .fail(.notSupported)),
                // Of a list that is done one by one, every part goes to the split, whether it failed or not.
                Row(phase, .completed, operation, split: true, requests: 3, .splitNext),
                Row(phase, .completed, operation, split: true, requests: 3, failure: -EIO, .splitNext),
                Row(phase, .completed, operation, split: true, requests: 1, failure: -EIO, .splitNext),
            ]
        }
    } + [
        // Which request it was shows only when they are done one by one.
        Row(.transfer, .completed, .read, requests: 2, failure: -EIO, .split),
        Row(.transfer, .completed, .write, requests: 9, failure: -EOPNOTSUPP, .split),
        Row(.fillBlocks, .completed, .write, .partialBlocks, requests: 2, failure: -EIO, .splitCopyIn),
        Row(.flushBefore, .completed, .flush, requests: 2, failure: -EIO, .fail(.error)),
        Row(.flushAfter, .completed, .writeBarrier, requests: 2, failure: -EIO, .fail(.error)),
    ]

/// The grant copies of a phase were tried.
private let copies: [Row] =
    [BlockOperation.write, .flush, .writeBarrier].flatMap { operation in
        [
            Row(.copyIn, .copied(failed: 0), operation, .transfer),
            Row(.copyIn, .copied(failed: 0), operation, requests: 4, .transfer),
            Row(.copyIn, .copied(failed: 1), operation, .finish),
            Row(.copyIn, .copied(failed: 1), operation, requests: 4, .split),
            Row(.copyIn, .copied(failed: 3), operation, requests: 4, .split),
            Row(.copyIn, .copied(failed: 4), operation, requests: 4, .finish),
            Row(.copyIn, .copied(failed: 0), operation, .partialBlocks, split: true, requests: 4, .split),
            Row(.copyIn, .copied(failed: 2), operation, .partialBlocks, split: true, requests: 4, .split),
            Row(.copyIn, .copied(failed: 4), operation, .partialBlocks, split: true, requests: 4, .finish),
        ]
    }
    + [Int32(0), 1, 4].map { Row(.copyOut, .copied(failed: $0), .read, requests: 4, .finish) }

@Suite("Transitions of reqlists")
struct TransitionTests {
    @Test("a list that has its memory", arguments: beginnings)
    private func begins(row: Row) { check(row) }

    @Test("a phase that the plugin completed", arguments: completions)
    private func completes(row: Row) { check(row) }

    @Test("a phase that failed", arguments: failures)
    private func fails(row: Row) { check(row) }

    @Test("grant copies, done or failed", arguments: copies)
    private func copied(row: Row) { check(row) }

    @Test("each phase that ends by an event is in the tables")
    func everyPhase() {
        let phases = Set((beginnings + completions + failures + copies).map(\.phase))
        #expect(
            phases == [
                .collecting, .waitingForDrain, .waitingForMemory, .flushBefore, .fillBlocks, .copyIn, .transfer,
                .flushAfter, .copyOut,
            ])
    }

    private func check(_ row: Row) {
        for disk in row.disks { #expect(row.state.next(after: row.event, on: disk) == row.expected, "\(disk)") }
    }

    @Test("a walk through the steps ends, and passes each phase at most once")
    func walks() {
        for disk in disks {
            for operation in [BlockOperation.read, .write, .writeBarrier, .flush, .discard] {
                for data in [ReqlistData.none, .wholeBlocks, .partialBlocks] {
                    if (data == .none) != (operation == .discard), operation != .flush, operation != .writeBarrier {
                        continue
                    }
                    walk(ReqlistState(operation: operation, data: data), disk)
                }
            }
        }
    }

    private func walk(_ begin: ReqlistState, _ disk: DiskTraits) {
        var state = begin
        var event = begun
        var seen: [ReqlistPhase] = []
        while true {
            switch state.next(after: event, on: disk) {
            case .flush(let phase): state.phase = phase
            case .fillBlocks: state.phase = .fillBlocks
            case .copyIn: state.phase = .copyIn
            case .copyOut: state.phase = .copyOut
            case .transfer, .discard: state.phase = .transfer
            case .finish:
                // Nothing is answered before its data were where they belong.
                if begin.data != .none || begin.operation == .discard { #expect(seen.contains(.transfer)) }
                if begin.operation == .read { #expect(seen.last == .copyOut) }
                if begin.data != .none && begin.operation != .read { #expect(seen.contains(.copyIn)) }
                return
            case let step:
                Issue.record("\(step) without a failure")
                return
            }
            if seen.contains(state.phase) {
                Issue.record("\(begin) comes to \(state.phase) again: \(seen)")
                return
            }
            seen.append(state.phase)
            event = [.copyIn, .copyOut].contains(state.phase) ? .copied(failed: 0) : .completed
        }
    }
}
