// SPDX-License-Identifier: BSD-2-Clause
// What a plugin's inspect() reports about an image (`struct xbb_image`). Names in it come from the image.
import PluginHost
import Base
import PluginAPI
import Support

/// The answer of one inspect().
struct ImageDescription {
    /// Members of the JSON answer; sizes in bytes.
    let members: [JSON.Member]
    /// What an administrator should know before the image is served.
    let warnings: [String]

    /// Asks the plugin.
    init(_ library: PluginLibrary, _ image: borrowing OpenImage, format: String) throws(OperationError) {
        let raw = try Self.ask(library, image.descriptor, format: format)
        let flags = raw.flags
        var warnings: [String] = []
        var words: [String] = []
        for (bit, word, warning) in Self.flagMeanings where flags & UInt32(bit) != 0 {
            words.append(word)
            if let warning { warnings.append(warning) }
        }
        var references: [JSON] = []
        let all = [raw.refs.0, raw.refs.1, raw.refs.2, raw.refs.3]
        for reference in all.prefix(Int(min(raw.ref_count, 4))) {
            let format = text(inArray: reference.format)
            let name = text(inArray: reference.name)
            let isBacking = reference.kind == UInt32(XBB_REF_BACKING)
            references.append(
                .object([
                    ("kind", .string(isBacking ? "backing" : "data")), ("name", .string(name)),
                    ("format", format.isEmpty ? .null : .string(format)),
                ]))
            if format.isEmpty { warnings.append("it names the file '\(name)' and not its format: it will be refused") }
            if !isBacking { warnings.append("its data is in another file, '\(name)': it will be refused") }
        }
        members = [
            ("virtual_size", .integer(raw.virtual_size)), ("metadata_memory", .integer(raw.metadata_memory)),
            ("flags", .array(words.map { .string($0) })), ("references", .array(references)),
        ]
        self.warnings = warnings
    }

    private static var flagMeanings: [(Int, String, String?)] {
        [
            (Int(XBB_IMG_ENCRYPTED), "encrypted", nil), (Int(XBB_IMG_COMPRESSED), "compressed", nil),
            (Int(XBB_IMG_DIRTY), "dirty", "it was not closed properly; check it (qemu-img check)"),
            (Int(XBB_IMG_CORRUPT), "corrupt", "it is marked as damaged; check it (qemu-img check)"),
            (
                Int(XBB_IMG_UNKNOWN_FEAT), "unknown-feature",
                "it has a feature that is not known here: it will be refused"
            ),
        ]
    }

    /// The structures outlive the call, and the plugin must fill only what `struct_size` covers.
    private static func ask(
        _ library: PluginLibrary, _ descriptor: Int32, format: String
    ) throws(OperationError) -> xbb_image {
        guard let inspect = unsafe library.table.inspect else {
            throw OperationError(.open, "plugin '\(library.name)' cannot tell what is in an image")
        }
        // Mandatory options are needed for serving only: an inspection has no secrets to give.
        let missing = library.options.filter { $0.defaultText == nil }.map { ($0.name, "") }
        let options = try PluginOptionValues(library.options, given: Dictionary(missing) { $1 })
        var image = xbb_image()
        image.struct_size = UInt32(MemoryLayout<xbb_image>.size)
        var failure = xbb_error()
        let result = unsafe withOpenRequest(
            format, label: format, flags: Int(XBB_OPEN_RDONLY), file: descriptor, options: options, host: nil
        ) { request in unsafe inspect(request, &image, &failure) }
        if result != 0 { throw OperationError(failure, result, "plugin '\(library.name)'") }
        return image
    }
}
