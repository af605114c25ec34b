// SPDX-License-Identifier: BSD-2-Clause
// Why an image is refused.
import Glibc

/// The refusal of an image, in words for the operator.
public struct ImageError: Error, Equatable {
    /// What kind of refusal it is.
    public enum Kind: Sendable, Equatable {
        /// Not an image of this format, or a damaged one.
        case invalid
        /// The image is intact and has something that is not read here.
        case unsupported
        /// A table or a number is above the bounds of the format.
        case tooLarge
        /// The image says of itself that it is damaged, or it changed while it was read.
        case corrupt
        /// The file cannot be read; the reader's positive errno. The message leaves its words to the caller.
        case unreadable(Int32)
    }

    /// What kind of refusal it is.
    public let kind: Kind
    /// One sentence that says what to do about it, where there is something to do.
    public let message: String

    /// A refusal with its own words.
    public init(_ kind: Kind, _ message: String) {
        self.kind = kind
        self.message = message
    }

    /// The refusal of a damaged image: `what` follows "the image is damaged: ".
    public static func damaged(_ what: String) -> ImageError { ImageError(.invalid, damagePrefix + what) }
    private static let damagePrefix = "the image is damaged: "

    /// The message without those words, for a sentence that has them.
    public var damage: String {
        message.hasPrefix(Self.damagePrefix) ? String(message.dropFirst(Self.damagePrefix.count)) : message
    }

    /// A positive errno value for those who must answer with one.
    public var code: Int32 {
        switch kind {
        case .invalid: EINVAL
        case .unsupported: EOPNOTSUPP
        case .tooLarge: EFBIG
        case .corrupt: EIO
        case .unreadable(let code): code
        }
    }
}
