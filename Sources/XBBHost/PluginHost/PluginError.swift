// SPDX-License-Identifier: BSD-2-Clause
// Why a plugin or a disk cannot be used.

/// A plugin that cannot be used, or a disk that it will not open. The text is for the operator.
public struct PluginError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What kind of trouble it is.
    public enum Kind: Sendable, Equatable {
        /// There is no such plugin.
        case missing
        /// The file or its directory could be changed by somebody else than root or ourselves.
        case untrusted
        /// The file is no plugin of an ABI that this host knows.
        case incompatible
        /// The plugin's description breaks the rules of the ABI.
        case invalid
        /// An option is unknown, missing or has a wrong value.
        case option
        /// The image or device cannot be opened.
        case open
    }
    /// The kind of trouble.
    public let kind: Kind
    /// What is wrong, with what, and what to do.
    public let description: String

    /// An error for the operator.
    public init(_ kind: Kind, _ description: String) {
        self.kind = kind
        self.description = description
    }
}
