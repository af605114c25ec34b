// SPDX-License-Identifier: BSD-2-Clause
// What the content of an image looks like, and when that is an answer. Pure.
import Base

/// A format that an image's content looks like.
public struct FormatMatch: Sendable, Equatable {
    /// The format.
    public let format: String
    /// The plugin that says so.
    public let plugin: String
    /// How sure it is, 1 to 100.
    public let score: Int

    /// A match; nil where the plugin says "not mine", and for "raw": what a guest writes to a raw disk can look like every
    /// other format, so nothing looks like raw.
    init?(format: String, plugin: String, score: Int32) {
        guard score > 0, format != "raw" else { return nil }
        self.format = format
        self.plugin = plugin
        self.score = min(Int(score), 100)
    }
}

/// Answers for `format=auto`.
enum FormatChoice {
    /// The one format that the content looks like. Two are refused however sure one of them is: an image may hide its header
    /// behind another's. None is refused too, and never taken for raw.
    static func only(_ matches: [FormatMatch], image: String) throws(OperationError) -> FormatMatch {
        if matches.count == 1, let match = matches.first { return match }
        if matches.isEmpty {
            throw OperationError(
                .open, "\(image) looks like no format that a plugin knows; if it is a raw image, say so: raw:\(image)")
        }
        let names = matches.map { "\($0.format) (\($0.score))" }.joined(separator: ", ")
        throw OperationError(
            .open, "\(image) looks like more than one format: \(names); say which it is: FORMAT:\(image)")
    }

    /// What `auto` means for an image that was served before.
    static func remembered(_ records: [FormatRecord], image: ImageIdentity) throws(OperationError) -> String? {
        let same = records.filter { $0.identity.isSameFile(as: image) }
        if let other = records.first(where: { $0.identity.path == image.path && !$0.identity.isSameFile(as: image) }) {
            throw OperationError(
                .open,
                "\(image.path) was served as \(other.format) before and is another file now; say what it is: "
                    + "FORMAT:\(image.path)")
        }
        let formats = Set(same.map(\.format)).sorted()
        if formats.count > 1 {
            throw OperationError(
                .open,
                "\(image.path) was served as \(formats.joined(separator: " and as ")); say what it is: "
                    + "FORMAT:\(image.path)")
        }
        return formats.first
    }
}
