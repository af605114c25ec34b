// SPDX-License-Identifier: BSD-2-Clause
// Looking at an image without opening what it names: probe() and inspect().
import Glibc
import PluginAPI
import PluginKit

/// Answers about images that nobody serves yet.
enum QCOWProbe {
    /// 0 to 100: is the image of the format that is asked about?  Magic and version decide.
    static func score(_ probe: UnsafePointer<xbb_probe>) -> Int32 {
        guard let head = unsafe probe.pointee.head, let format = unsafe probe.pointee.format else { return 0 }
        let bytes = unsafe UnsafeBufferPointer(start: head, count: Int(min(probe.pointee.head_len, 8)))
        guard let version = unsafe QCOWHeader.version(of: bytes) else { return 0 }
        let wanted = unsafe String(cString: format)
        switch version {
        case 1: return wanted == "qcow" ? 100 : 0
        case 2, 3: return wanted == "qcow2" ? 100 : 0
        default: return 0
        }
    }

    /// Fills in what the header says.  Damage that leaves nothing certain is an error.
    static func inspect(_ opening: Opening, _ image: inout xbb_image) throws(PluginError) {
        let file = try ImageFile(fd: opening.fd)
        defer { file.finish() }
        let check = try QCOWLayer.examine(file)
        let header = check.header
        let actual = header.version == 1 ? "qcow" : "qcow2"
        guard opening.format == actual else {
            throw PluginError(EINVAL, "the image is \(actual) (version \(header.version)), not \(opening.format)")
        }
        image.flags = check.flags
        image.virtual_size = header.size
        image.metadata_memory = memory(check)
        let references = ImageReference.all(of: header)
        image.ref_count = UInt32(references.count)
        for (index, reference) in references.enumerated() {
            var filled = xbb_ref()
            try reference.fill(&filled)
            if index == 0 { image.refs.0 = filled } else { image.refs.1 = filled }
        }
    }

    /// Bytes that an open image takes: its L1 table, and for each queue pieces of tables and inflated clusters.
    /// 0 of an image that is refused for its features: the sizes in such a header may be anything.
    private static func memory(_ check: QCOWCheck) -> UInt64 {
        guard (try? check.features()) != nil else { return 0 }
        let l1 = check.l1Bytes
        let perQueue = min(check.l1Bytes << UInt64(check.header.l2Bits), 1 << 20) + 2 * check.header.clusterSize
        return l1 + 4 * perQueue
    }
}
