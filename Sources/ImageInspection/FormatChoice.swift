// SPDX-License-Identifier: BSD-2-Clause
// Decides which format an image has, from what plugins recognised or from what it was served as before. Pure.
import Base
import ImageCore

/// A format that an image's content looks like.
public struct FormatMatch: Sendable, Equatable {
    /// The format.
    public let format: String
    /// The plugin that recognised it.
    public let plugin: String
    /// How sure it is, 1 to 100.
    public let score: Int

    /// A match; nil if the plugin says "not mine", and always for "raw": a guest can make a raw disk look like any
    /// other format, so no content is evidence of raw.
    init?(format: String, plugin: String, score: Int32) {
        guard score > 0, format != "raw" else { return nil }
        self.format = format
        self.plugin = plugin
        self.score = min(Int(score), 100)
    }
}

/// Answers for `format=auto`.
enum FormatChoice {
    /// The only format that was recognised. Two are an error, however high one of them scores: an image may hide its
    /// header behind another format's. None is an error too, and is never taken for raw. `signature` is what the image is by
    /// its magic: raw is not suggested then.
    static func only(
        _ matches: [FormatMatch], image: String, signature: ImageSignature?
    ) throws(OperationError) -> FormatMatch {
        if matches.count == 1, let match = matches.first { return match }
        if matches.isEmpty {
            if let signature {
                throw OperationError(
                    .open, "\(image) is \(signature.name), which no plugin serves: \(signature.remedy)")
            }
            throw OperationError(
                .open, "\(image) looks like no format that a plugin knows; if it is a raw image, say so: raw:\(image)")
        }
        let names = matches.map { "\($0.format) (\($0.score))" }.joined(separator: ", ")
        throw OperationError(
            .open, "\(image) looks like more than one format: \(names); say which it is: FORMAT:\(image)")
    }

    /// The format that `auto` stands for if the image was served before; nil if it was not.
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
