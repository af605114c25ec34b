// SPDX-License-Identifier: BSD-2-Clause
// Images that nobody serves yet: recognizing them, and saying what is in them.
import Glibc
import PluginAPI

/// Looks at images. Whoever made one may mean harm: every number in it is checked before it is used.
public protocol ImageInspector: SendableMetatype {
    /// 0 (no) to 100 (certain): is this an image of `head.format`? Nothing but `head` decides, and nothing is kept.
    static func score(_ head: ImageHead) -> Int
    /// Says what the header of `opening.fd` says, and follows no name in it. In a process of its own with limits of memory
    /// and time, where no disk is opened.
    static func inspect(_ opening: Opening) throws(PluginError) -> ImageDescription
    /// Says what an administrator may want to know beside that, fact by fact, until `report` gives false. Under the same
    /// conditions.
    static func examine(_ opening: Opening, _ report: (ImageFact) -> Bool) throws(PluginError)
    /// There is a second, independent reader: ``compare(_:_:)`` works.
    static var canCompare: Bool { get }
    /// Reads the image through both readers and says what they differ in, until `report` gives false. Under the same conditions,
    /// but for as long as it takes.
    static func compare(_ opening: Opening, _ report: (ImageComparison) -> Bool) throws(PluginError)
}

/// What a comparison of two readers says; "xbb.draft.compare/1" of docs/plugin-abi.md.
public enum ImageComparison: Sendable, Equatable {
    /// So many of all bytes of the disk are done.
    case progress(UInt64, of: UInt64)
    /// A range of the disk in which they differ, in bytes, and what each says.
    case difference(Range<UInt64>, first: String, second: String)
    /// The same, for a known fault of the second reader; its name.
    case knownFault(Range<UInt64>, name: String, words: String)
    /// A range that was not compared, and why.
    case skipped(Range<UInt64>, reason: String)
    /// The second reader cannot read this image at all: why.
    case unreadable(String)
}

extension ImageInspector {
    /// There is one reader.
    public static var canCompare: Bool { false }

    /// Refused.
    public static func compare(_ opening: Opening, _ report: (ImageComparison) -> Bool) throws(PluginError) {
        throw PluginError(EOPNOTSUPP, "there is no second reader for this format")
    }

    /// Nothing more.
    public static func examine(_ opening: Opening, _ report: (ImageFact) -> Bool) throws(PluginError) {}
}

/// Something about an image. Its names and words may come from the image: the host takes control characters away.
public struct ImageFact: Sendable, Equatable {
    /// As `small-letters`.
    public let name: String
    /// A number, or what of it there is in words.
    public let value: UInt64
    /// Words of one line; nil: the number is all.
    public let words: String?

    /// A number.
    public init(_ name: String, _ value: UInt64) { (self.name, self.value, words) = (name, value, nil) }
    /// Words.
    public init(_ name: String, _ words: String) { (self.name, value, self.words) = (name, 0, words) }
}

/// The beginning and the end of a file that is asked about; `xbb_probe`. It is valid while `score()` runs.
@safe
public struct ImageHead {
    private let probe: UnsafePointer<xbb_probe>
    /// The format that is asked about, one of the plugin's.
    public let format: String
    /// Bytes of the file.
    public var fileSize: UInt64 { unsafe probe.pointee.file_size }

    init?(_ probe: UnsafePointer<xbb_probe>?) {
        guard let probe = unsafe probe, let format = unsafe probe.pointee.format else { return nil }
        unsafe self.probe = unsafe probe
        self.format = unsafe String(cString: format)
    }

    /// The first bytes of the file: as many as there are of `count`, at most 64 KiB.
    public func first(_ count: Int) -> [UInt8] {
        guard let head = unsafe probe.pointee.head else { return [] }
        return unsafe Array(
            UnsafeBufferPointer(start: head, count: Int(clamping: probe.pointee.head_len)).prefix(count))
    }

    /// The last bytes of the file: as many as there are of `count`, at most 4 KiB.
    public func last(_ count: Int) -> [UInt8] {
        guard let tail = unsafe probe.pointee.tail else { return [] }
        return unsafe Array(
            UnsafeBufferPointer(start: tail, count: Int(clamping: probe.pointee.tail_len)).suffix(count))
    }
}

/// What is in an image; `xbb_image`.
public struct ImageDescription: Sendable {
    /// What is known of its state; `XBB_IMG_*`.
    public struct Traits: OptionSet, Sendable {
        /// `XBB_IMG_*`
        public let rawValue: UInt32
        /// From `XBB_IMG_*`.
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Its data are encrypted.
        public static let encrypted = Traits(rawValue: XBB_IMG_ENCRYPTED)
        /// Its data are compressed.
        public static let compressed = Traits(rawValue: XBB_IMG_COMPRESSED)
        /// Its last writer did not close it.
        public static let dirty = Traits(rawValue: XBB_IMG_DIRTY)
        /// It says that it is damaged.
        public static let corrupt = Traits(rawValue: XBB_IMG_CORRUPT)
        /// It has a feature that must be understood, and is not.
        public static let unknownFeatures = Traits(rawValue: XBB_IMG_UNKNOWN_FEAT)
    }

    /// Its state.
    public var traits: Traits
    /// Bytes of the disk in it.
    public var diskSize: UInt64
    /// Bytes of memory that an open image takes.
    public var memory: UInt64
    /// The files that it names, at most four.
    public var files: [ImageFileName]

    /// A description.
    public init(diskSize: UInt64, memory: UInt64, traits: Traits = [], files: [ImageFileName] = []) {
        (self.traits, self.diskSize, self.memory, self.files) = (traits, diskSize, memory, files)
    }

    func fill(_ image: inout xbb_image) throws(PluginError) {
        image.flags = traits.rawValue
        image.virtual_size = diskSize
        image.metadata_memory = memory
        image.ref_count = UInt32(clamping: min(files.count, 4))
        for (index, file) in files.prefix(4).enumerated() {
            var filled = xbb_ref()
            try file.fill(&filled)
            switch index {
            case 0: image.refs.0 = filled
            case 1: image.refs.1 = filled
            case 2: image.refs.2 = filled
            default: image.refs.3 = filled
            }
        }
    }
}
