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
            if !isBacking {
                warnings.append(
                    "its data is in another file, '\(name)': a disk that writes needs the option data-file with its path"
                )
            }
        }
        let facts = try Self.facts(library, image.descriptor, format: format)
        members =
            [
                ("virtual_size", .integer(raw.virtual_size)), ("metadata_memory", .integer(raw.metadata_memory)),
                ("flags", .array(words.map { .string($0) })), ("references", .array(references)),
            ] + (facts.isEmpty ? [] : [("facts", .object(facts))])
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

    /// What the plugin says beside that: numbers, and lists of words for what there may be several of. Bounded, as the plugin
    /// repeats what it finds in the image.
    private static func facts(
        _ library: PluginLibrary, _ descriptor: Int32, format: String
    ) throws(OperationError) -> [JSON.Member] {
        guard let examine = unsafe library.table.examine else { return [] }
        let collector = FactCollector()
        let options = try optionValues(library)
        var failure = xbb_error()
        let result = unsafe withOpenRequest(
            format, label: format, flags: Int(XBB_OPEN_RDONLY), file: descriptor, options: options, host: nil
        ) { request in
            unsafe examine(
                request, 0,
                { argument, name, value, words in
                    guard let argument = unsafe argument, let name = unsafe name else { return 1 }
                    let collector = unsafe Unmanaged<FactCollector>.fromOpaque(argument).takeUnretainedValue()
                    return collector.add(
                        unsafe String(cString: name), value, unsafe words.map { unsafe String(cString: $0) }) ? 0 : 1
                }, Unmanaged.passUnretained(collector).toOpaque(), &failure)
        }
        // Facts are beside the description: an image that has none that can be told is described nevertheless.
        return result == 0 ? collector.members : []
    }

    static func optionValues(_ library: PluginLibrary) throws(OperationError) -> PluginOptionValues {
        // Mandatory options are needed for serving only: an inspection has no secrets to give.
        let missing = library.options.filter { $0.defaultText == nil }.map { ($0.name, "") }
        return try PluginOptionValues(library.options, given: Dictionary(missing) { $1 })
    }

    /// The structures outlive the call, and the plugin must fill only what `struct_size` covers.
    private static func ask(
        _ library: PluginLibrary, _ descriptor: Int32, format: String
    ) throws(OperationError) -> xbb_image {
        guard let inspect = unsafe library.table.inspect else {
            throw OperationError(.open, "plugin '\(library.name)' cannot tell what is in an image")
        }
        let options = try optionValues(library)
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

/// Collects what examine() tells.
private final class FactCollector {
    private(set) var members: [JSON.Member] = []
    /// More are not of use to anybody.
    private static let most = 256
    private var count = 0

    /// False: no more.
    func add(_ name: String, _ value: UInt64, _ words: String?) -> Bool {
        count += 1
        guard count <= Self.most else { return false }
        guard let words else {
            members.append((name, .integer(value)))
            return true
        }
        let text = JSON.string(String(words.prefix(256)))
        if let index = members.firstIndex(where: { $0.name == name }) {
            members[index].value = .array(members[index].value.elements + [text])
        } else {
            members.append((name, .array([text])))
        }
        return true
    }
}
