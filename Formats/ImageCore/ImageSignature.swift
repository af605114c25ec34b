// SPDX-License-Identifier: BSD-2-Clause
// What a file is by its first and last bytes: for words to an operator who named another format, never to choose one.

/// A kind of file that is known by its magic.
public struct ImageSignature: Sendable, Equatable {
    /// "a VHD image".
    public let name: String
    /// What helps.
    public let remedy: String

    private static let convert = "convert it (qemu-img convert -O raw OLD NEW)"
    private static let vhd = "attach it as vhd, for which there is the package xbb-plugin-vhd"
    private static let unpack = "unpack it first"
    private static let outside =
        "open it with cryptsetup and attach the device, or attach it as raw if the guest opens it"

    /// As much of a file's beginning as ``init(head:tail:)`` looks at, and of its end.
    public static let headBytes = 512
    /// See ``headBytes``.
    public static let tailBytes = 512

    /// What begins with a text at an offset.
    private static let heads: [(offset: Int, magic: [UInt8], name: String, remedy: String)] = [
        (0, Array("QFI".utf8) + [0xfb], "a QCOW image", "attach it as qcow2, or qcow"),
        (0, Array("conectix".utf8), "a VHD image", vhd),
        (0, Array("vhdxfile".utf8), "a VHDX image", convert),
        (0, Array("KDMV".utf8), "a VMDK image", convert),
        (0, Array("COWD".utf8), "a VMDK image", convert),
        (0, [0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0], "a VMDK image", convert),
        (0, Array("# Disk DescriptorFile".utf8), "a VMDK descriptor", convert),
        (64, [0x7f, 0x10, 0xda, 0xbe], "a VDI image", convert),
        (0, Array("QED\0".utf8), "a QED image", convert),
        (0, Array("LUKS".utf8) + [0xba, 0xbe], "a LUKS volume", outside),
        (0, Array("WithoutFreeSpace".utf8), "a parallels image", convert),
        (0, Array("WithouFreSpacExt".utf8), "a parallels image", convert),
        (0, Array("Bochs Virtual HD Image".utf8), "a bochs image", convert),
        (0, Array("#!/bin/sh\n#V2.0 Format\nmodprobe cloop".utf8), "a cloop image", convert),
        (0, Array("EVF".utf8) + [0x09, 0x0d, 0x0a, 0xff, 0x00], "an EWF image", "export it as raw (ewfexport)"),
        (0, [0x1f, 0x8b], "a gzip file", unpack),
        (0, [0xfd] + Array("7zXZ\0".utf8), "an xz file", unpack),
        (0, [0x28, 0xb5, 0x2f, 0xfd], "a zstd file", unpack),
        (0, Array("BZh".utf8), "a bzip2 file", unpack),
        (0, [0x04, 0x22, 0x4d, 0x18], "an lz4 file", unpack),
        (0, [0x89] + Array("LZO\0\r\n".utf8) + [0x1a, 0x0a], "an lzop file", unpack),
        (0, Array("PK".utf8) + [3, 4], "a zip archive", unpack),
        (0, Array("7z".utf8) + [0xbc, 0xaf, 0x27, 0x1c], "a 7-Zip archive", unpack),
        (257, Array("ustar".utf8), "a tar archive, or an OVA", unpack),
    ]

    /// What ends with a block that begins with a text; VHD's block had 511 bytes once.
    private static let tails: [(length: Int, magic: [UInt8], name: String, remedy: String)] = [
        (512, Array("conectix".utf8), "a VHD image", vhd), (511, Array("conectix".utf8), "a VHD image", vhd),
        (512, Array("koly".utf8), "a DMG image", convert),
    ]

    /// What the first and the last bytes of a file tell; nil where they tell nothing. Either may be cut off or empty.
    public init?(head: some Collection<UInt8>, tail: some Collection<UInt8>) {
        let (head, tail) = (Array(head.prefix(Self.headBytes)), Array(tail.suffix(Self.tailBytes)))
        for entry in Self.heads where head.dropFirst(entry.offset).starts(with: entry.magic) {
            (name, remedy) = (entry.name, entry.remedy)
            return
        }
        for entry in Self.tails where tail.count >= entry.length && tail.suffix(entry.length).starts(with: entry.magic)
        {
            (name, remedy) = (entry.name, entry.remedy)
            return
        }
        return nil
    }

    /// The same of a file that can be read; nil also where it cannot.
    public init?(of image: some ImageReader) {
        let start = image.size > UInt64(Self.tailBytes) ? image.size - UInt64(Self.tailBytes) : 0
        guard let head = try? image.bytes(at: 0, count: Self.headBytes),
            let tail = try? image.bytes(at: start, count: Self.tailBytes)
        else { return nil }
        self.init(head: head, tail: tail)
    }
}
