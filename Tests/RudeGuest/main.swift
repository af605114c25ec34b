// SPDX-License-Identifier: BSD-2-Clause
// rude-guest: a frontend that breaks the rules of ring, grants and XenStore at random from a seed, for a while, and leaves in disorder.
//
// usage: rude-guest LOOPBACK DOMAIN SEED SECONDS
// Whether the backend minds is not judged here: Tests/Soak looks at the disks of others, and at what is left.
import Blkfront
import Blkif
import CLinux
import Foundation
import Support
import Xen
import XenLoopback

/// The misdeeds of one guest on its disk, xvda.
struct RudeGuest {
    let domain: LoopbackDomain
    var random: SplitMix64

    /// Connects in some way, misbehaves, and connects again until the time is over.
    mutating func run(until end: UInt64) {
        while clinux_monotonic_ns() < end {
            do {
                try oneConnection(until: end)
            } catch {
                // Refused or dead: that is what it asked for.
                usleep(20_000)
            }
        }
    }

    private mutating func oneConnection(until end: UInt64) throws {
        for reference in domain.grantedReferences { _ = domain.endAccess(reference) }
        var options = FrontOptions()
        options.ringPages = [1, 4, 8][Int(random.below(3))]
        options.queues = 1 + Int(random.below(4))
        options.abi = random.below(2) == 0 ? .native : .x86_32
        options.indirectSegments = random.below(2) == 0 ? 0 : 32
        options.offersPersistentGrants = random.below(2) == 0
        options.verifiesPadding = false
        options.timeout = 3000
        let device = FrontDevice(domain: domain, store: try domain.openStore(), number: 51712, options: options)
        let hostile = HostileFrontend(device, seed: random.next())
        if random.below(4) == 0 {
            try device.findBackend()
            try device.start()
            _ = try hostile.writeRandomStates(20 + Int(random.below(300)))
            try hostile.write("ring-ref", ["-1", "4294967295", "x", ""][Int(random.below(4))])
            try hostile.writeState(3)
            return
        }
        try device.connect()
        let layout = RingLayout(options.abi)
        let references =
            [
                try hostile.grant(), try hostile.grant(readOnly: true), try hostile.revokedReference(),
                hostile.emptyReference(),
            ]
            + hostile.absentReferences()
        let flipper =
            random.below(3) == 0
            ? try hostile.flip(device.queues[0].withQueue { $0.ringPages }, layout: layout) : nil
        defer { flipper?.stop() }
        let stop = min(end, clinux_monotonic_ns() + 1_000_000_000 + random.below(2_000_000_000))
        while clinux_monotonic_ns() < stop {
            let box = device.queues[Int(random.below(UInt64(device.queues.count)))]
            try misuse(box, hostile, layout, references, sectors: device.info.sectors)
        }
        switch random.below(4) {
        case 0: try device.close()
        case 1: _ = try hostile.writeRandomStates(50)
        // Gone, with all that is in flight.
        default: break
        }
    }

    private mutating func misuse(
        _ box: FrontQueueBox, _ hostile: HostileFrontend, _ layout: RingLayout, _ references: [UInt32], sectors: UInt64
    ) throws {
        let (choice, number) = (random.below(20), random.next())
        let chosen = (0..<11).map { _ in references[Int(random.below(UInt64(references.count)))] }
        try box.withQueue { (queue) throws in
            switch choice {
            case 0: queue.moveProducer(by: UInt32(truncatingIfNeeded: number >> 40))
            case 1: hostile.junk(queue.ringPages)
            case 2: for _ in 0..<2000 { try queue.notify() }
            case 3..<6 where queue.ring.free > 0: queue.submitRaw(hostile.randomSlot(), expecting: nil)
            default:
                for id in 0..<8 where queue.ring.free > 0 {
                    queue.submitRaw(
                        hostile.nearlyRightSlot(
                            layout: layout, id: number &+ UInt64(id), sectors: sectors, references: chosen),
                        expecting: nil)
                }
            }
            try queue.publish()
            while let done = try? queue.nextCompletion() { _ = done }
        }
        usleep(500)
    }
}

let words = CommandLine.arguments
guard words.count == 5, let number = UInt16(words[2]), let seed = UInt64(words[3]), let seconds = UInt64(words[4]),
    let domain = try? LoopbackDomain(joining: number, directory: words[1])
else { exit(64) }
var guest = RudeGuest(domain: domain, random: SplitMix64(seed: seed))
guest.run(until: clinux_monotonic_ns() + seconds * 1_000_000_000)
