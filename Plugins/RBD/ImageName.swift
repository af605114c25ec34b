// SPDX-License-Identifier: BSD-2-Clause
// What a location names: pool[/namespace]/image[@snapshot].
import PluginKit

/// The name of an image, as rbd(8) writes it.
struct ImageName: Equatable, Sendable {
    let pool: String
    let namespace: String
    let image: String
    /// nil: the image itself.
    let snapshot: String?

    /// Throws where the text names no image.
    init(_ location: String) throws(PluginError) {
        var rest = Substring(location)
        var snapshot: String?
        if let at = rest.lastIndex(of: "@"), at > rest.lastIndex(of: "/") ?? rest.startIndex {
            snapshot = String(rest[rest.index(after: at)...])
            rest = rest[..<at]
        }
        let parts = rest.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 2 || parts.count == 3, parts.allSatisfy({ !$0.isEmpty && !$0.contains("@") }),
            snapshot != ""
        else { throw .invalid("'\(location)' is no image: expected POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]") }
        (pool, image) = (parts[0], parts[parts.count - 1])
        namespace = parts.count == 3 ? parts[1] : ""
        self.snapshot = snapshot
    }

    /// As rbd(8) writes it.
    var location: String { snapshot.map { "\(text)@\($0)" } ?? text }

    /// As rbd(8) writes it, without the snapshot.
    var text: String { ([pool] + (namespace.isEmpty ? [] : [namespace]) + [image]).joined(separator: "/") }
}
