// SPDX-License-Identifier: BSD-2-Clause
// Looking at an image that nobody serves yet.
import ImageCore

/// What the first bytes of a file and a header alone tell.
public enum QCOWProbe {
    /// 0 to 100: does a file that begins with `head` look like an image of `format`, QEMU's name? Magic and version decide.
    public static func score(_ head: some Collection<UInt8>, format: String) -> Int {
        switch QCOWHeader.version(of: head) {
        case 1: format == "qcow" ? 100 : 0
        case 2, 3: format == "qcow2" ? 100 : 0
        default: 0
        }
    }

    /// Bytes of memory that an open image takes: its L1 table, and for each of 4 threads pieces of tables and inflated
    /// clusters. 0 of an image that is refused for its features: the sizes in such a header may be anything.
    public static func memory(_ check: QCOWCheck) -> UInt64 {
        guard (try? check.features()) != nil else { return 0 }
        let tables = check.header.l1Count.multipliedReportingOverflow(by: check.header.l2Bytes)
        let perQueue = (tables.overflow ? 1 << 20 : min(tables.partialValue, 1 << 20)) + 2 * check.header.clusterSize
        return check.l1Bytes + 4 * perQueue
    }
}
