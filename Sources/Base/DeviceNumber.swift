// SPDX-License-Identifier: BSD-2-Clause
// Numbers of device nodes.

/// The numbers of a device node.
public struct DeviceNumber: Equatable, Sendable, CustomStringConvertible {
    /// Major number.
    public let major: UInt32
    /// Minor number.
    public let minor: UInt32

    /// The device `major`:`minor`.
    public init(major: UInt32, minor: UInt32) {
        self.major = major
        self.minor = minor
    }

    /// In decimal, as lsblk shows it.
    public var description: String { "\(major):\(minor)" }
}
