// SPDX-License-Identifier: BSD-2-Clause
// The name of another file inside an image. Its author chose it: whoever serves the image decides whether it is opened.

/// A file that an image names.
public struct ImageReference: Sendable, Equatable {
    /// What the file is for.
    public enum Kind: Sendable {
        /// The layer below the image.
        case backing
        /// The data of the image, whose own file has the tables only.
        case data
    }

    /// What the file is for.
    public let kind: Kind
    /// The name as it stands in the image: any bytes.
    public let name: [UInt8]
    /// The format that the image says the file is of; nil: nothing.
    public let format: [UInt8]?

    /// A reference.
    public init(_ kind: Kind, name: [UInt8], format: [UInt8]?) {
        self.kind = kind
        self.name = name
        self.format = format
    }
}
