// SPDX-License-Identifier: BSD-2-Clause
// The keys that a frontend writes, and their form.
import Blkif

extension FrontDevice {
    /// The keys below ``path`` in the order of writing; nil for a key that must not exist but may be left from an
    /// earlier connection.
    public func keys() -> [(key: String, value: String?)] {
        var keys: [(key: String, value: String?)] = []
        let single = queues.count == 1
        keys.append(("multi-queue-num-queues", single ? nil : String(queues.count)))
        let order = String(ringPages.trailingZeroBitCount)
        switch options.ringScheme {
        case .automatic:
            keys.append(("ring-page-order", ringPages > 1 ? order : nil))
            keys.append(("num-ring-pages", nil))
        case .pageOrder, .pageOrderZero:
            keys.append(("ring-page-order", order))
            keys.append(("num-ring-pages", nil))
        case .pageCount:
            keys.append(("ring-page-order", nil))
            keys.append(("num-ring-pages", String(ringPages)))
        case .both:
            keys.append(("ring-page-order", order))
            keys.append(("num-ring-pages", String(ringPages)))
        }
        for queue in queues {
            let prefix = single ? "" : "queue-\(queue.index)/"
            if options.ringScheme == .pageOrderZero || (options.ringScheme == .automatic && ringPages == 1) {
                keys.append(("\(prefix)ring-ref", queue.ringReferences.first.map { String($0) }))
            } else {
                if single { keys.append(("ring-ref", nil)) }
                for (page, reference) in queue.ringReferences.enumerated() {
                    keys.append(("\(prefix)ring-ref\(page)", String(reference)))
                }
            }
            keys.append(("\(prefix)event-channel", String(queue.port.number)))
        }
        keys.append(("protocol", options.protocolText))
        keys.append(("feature-persistent", options.offersPersistentGrants ? "1" : "0"))
        keys.append(("feature-large-sector-size", options.largeSectors ? "1" : nil))
        return keys
    }
}
