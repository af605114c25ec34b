// SPDX-License-Identifier: BSD-2-Clause
// The name of another file inside an image, on its way to the host: it alone decides what is opened.
import Glibc
import PluginAPI
import PluginKit

/// A name that the image's author chose.
struct ImageReference {
    let kind: UInt32
    let name: [UInt8]
    let format: [UInt8]

    /// The backing file of an image, with the format that the image or else the administrator gives; nil without one.
    init?(backingOf header: QCOWHeader, opening: Opening) throws(PluginError) {
        guard let name = header.backingName else { return nil }
        let chosen = try opening[QCOWOption.backingFormat]
        let format = header.backingFormat ?? (chosen == .none ? [] : Array(chosen.rawValue.utf8))
        self.init(kind: UInt32(XBB_REF_BACKING), name: name, format: format)
    }

    init(kind: UInt32, name: [UInt8], format: [UInt8]) {
        self.kind = kind
        self.name = name
        self.format = format
    }

    /// The names in an image, as `inspect()` reports them.
    static func all(of header: QCOWHeader) -> [ImageReference] {
        var found: [ImageReference] = []
        if let name = header.backingName {
            found.append(
                ImageReference(kind: UInt32(XBB_REF_BACKING), name: name, format: header.backingFormat ?? []))
        }
        if let name = header.dataFileName {
            found.append(ImageReference(kind: UInt32(XBB_REF_DATA), name: name, format: Array("raw".utf8)))
        }
        return found
    }

    /// The C form; a name with a NUL in it, or one that does not fit, is no name of a file.
    func fill(_ reference: inout xbb_ref) throws(PluginError) {
        guard !name.contains(0) else { throw PluginError(EINVAL, "the image names a file with a NUL in its name") }
        reference.kind = kind
        let nameFits = unsafe withUnsafeMutableBytes(of: &reference.name) { unsafe Self.copy(name, to: $0) }
        let formatFits = unsafe withUnsafeMutableBytes(of: &reference.format) { unsafe Self.copy(format, to: $0) }
        guard nameFits else { throw PluginError(ENAMETOOLONG, "the image names a file of \(name.count) bytes") }
        guard formatFits, !format.contains(0) else {
            throw PluginError(EINVAL, "the image names a format that is none")
        }
    }

    private static func copy(_ bytes: [UInt8], to field: UnsafeMutableRawBufferPointer) -> Bool {
        guard bytes.count < field.count else { return false }
        unsafe field.copyBytes(from: bytes)
        return true
    }
}
