// SPDX-License-Identifier: BSD-2-Clause
// Where the data of a reqlist stand between the guest and the plugin.

/// Pages of the queue's memory, in the order of the data: one run of pages, or several where no run is long enough. Each
/// list has one, in ``DataPlane``.
///
/// An offset in a buffer counts bytes from its first page, over the ends of runs.
struct ListBuffer: BitwiseCopyable {
    /// First page of the first run.
    var page: Int32 = 0
    /// Pages of all runs together; 0 while the list has none.
    var pages: Int32 = 0
    /// Number of runs. The further ones are kept by ``DataPlane``.
    var runs: Int32 = 0
    /// Bytes before the first sector of the list, where the disk's blocks are larger than a sector.
    var headBytes: Int32 = 0
    /// Offset of the pages where single requests are done that fill blocks only in part; 0 for none.
    ///
    /// They are never the first pages: the list's data stand before them.
    var scratch: Int32 = 0

    /// Where the first run begins in the memory, in bytes.
    @inline(__always)
    var start: Int { Int(page) &* BufferPool.pageSize }
}

/// Adjacent pages of the queue's memory.
struct BufferRun: BitwiseCopyable {
    var page: Int32
    var pages: Int32
}
