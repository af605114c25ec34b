// SPDX-License-Identifier: BSD-2-Clause
// What is under way on the connections of a disk, in memory that outlives the process: for the successor of one that was killed.
import CGnuTLS
import Glibc
import PluginKit

/// Memory in which each connection notes the writes that it has sent and that have no answer yet, and in which it receives. A
/// successor finds there which writes the server may still be doing, and the answers that arrived and that nobody had read.
///
/// The size is sealed, so that nobody who has the descriptor can take pages away below a process that reads it. A hijacked process may
/// have written anything: numbers are taken from here for nothing but comparison.
///
/// `@unchecked Sendable`: each connection's part belongs to the thread of its queue.
@safe
final class FlightLog: @unchecked Sendable {
    /// The most requests of a connection that are under way.
    static let slots = 256
    /// Bytes that are received at once.
    static let bufferBytes = 128 << 10
    /// Bytes that a successor receives at once.
    static let pieceBytes = 32 << 10
    fileprivate static let headerBytesKept = 16
    /// The most connections of a disk.
    static let mostConnections = 8

    private static let (headerBytes, entryBytes) = (4096, 16)
    private static let stride = slots * entryBytes + bufferBytes
    private static let bytes = headerBytes + mostConnections * stride
    /// Where the words of the header are: the mark of this layout, whether all is known to be done, whether nobody knows what was under
    /// way before, and from there on the failure of each connection.
    private static let (markPlace, settledPlace, unknownPlace, failurePlace, cipherPlace) = (0, 8, 16, 64, 128)
    private static let closingPlace = 192
    private static let mark: UInt64 = 0x3130_474f_4c44_424e  // "NBDLOG01"

    /// memfd_create(2).
    let file: Int32
    private let base: UnsafeMutableRawPointer

    /// New memory.
    convenience init() throws(PluginError) {
        let file = unsafe cgnutls_memory("xbb-nbd")
        guard file >= 0 else { throw PluginError(system: "no memory for the log of requests") }
        guard ftruncate(file, off_t(Self.bytes)) == 0, cgnutls_seal(file) == 0 else {
            let code = errno
            close(file)
            throw PluginError(system: "no memory for the log of requests", code)
        }
        try self.init(mapping: file)
        unsafe base.storeBytes(of: Self.mark, toByteOffset: Self.markPlace, as: UInt64.self)
    }

    /// The memory of the process before; takes the descriptor. nil: it is of another version of the plugin, and settled; that is said at
    /// the same place in all versions.
    static func inherited(_ predecessor: Int32) throws(PluginError) -> FlightLog? {
        var status = stat()
        if unsafe fstat(predecessor, &status) == 0, status.st_size == off_t(bytes), cgnutls_is_sealed(predecessor) != 0
        {
            let log = try FlightLog(mapping: predecessor)
            if unsafe log.base.load(fromByteOffset: markPlace, as: UInt64.self) == mark { return log }
            if log.isSettled { return nil }
        } else {
            var words: [UInt64] = [0, 0]
            // As many bytes as the array has.
            let count = unsafe pread(predecessor, &words, 16, 0)
            close(predecessor)
            if count == 16, words[1] != 0 { return nil }
        }
        throw PluginError(
            EPROTO,
            "the process before was of another version of the plugin and did not end in order: what the server still does for it "
                + "is not known; detach the disk ('xbbctl detach --force') and attach it again")
    }

    private init(mapping file: Int32) throws(PluginError) {
        let mapped = unsafe mmap(nil, Self.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
        guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else {
            let code = errno
            close(file)
            throw PluginError(system: "cannot map the log of requests", code)
        }
        self.file = file
        unsafe base = unsafe mapped
    }

    deinit {
        unsafe _ = munmap(base, Self.bytes)
        close(file)
    }

    // MARK: A connection's part

    /// The part of a connection; `index` is below ``mostConnections``.
    func part(_ index: Int) -> Part {
        unsafe Part(base + Self.headerBytes + min(index, Self.mostConnections - 1) * Self.stride)
    }

    /// Where a connection notes and receives.
    @safe
    struct Part {
        private let entries: UnsafeMutablePointer<Entry>
        /// ``FlightLog/bufferBytes`` that a connection receives in.
        let buffer: UnsafeMutableRawBufferPointer

        struct Entry {
            /// 0: nothing is under way in this slot that changes the disk.
            var cookie: UInt64
            var state: UInt64
        }

        /// How much of a request is with the kernel.
        private enum State {
            /// Nobody knows: the call that sends it has not returned.
            static let offered: UInt64 = 1
            static let sent: UInt64 = 2
            /// Some of it, but not all.
            static let cut: UInt64 = 3
        }

        fileprivate init(_ base: UnsafeMutableRawPointer) {
            unsafe entries = base.bindMemory(to: Entry.self, capacity: FlightLog.slots)
            unsafe buffer = UnsafeMutableRawBufferPointer(
                start: base + FlightLog.slots * FlightLog.entryBytes, count: FlightLog.bufferBytes)
        }

        /// Notes a request that changes the disk, before the call that sends it.
        @inline(__always) func offer(_ slot: Int, cookie: UInt64) {
            unsafe entries[slot & (FlightLog.slots - 1)] = Entry(cookie: cookie, state: State.offered)
        }

        /// All of the request is with the kernel.
        @inline(__always) func sent(_ slot: Int) { unsafe entries[slot & (FlightLog.slots - 1)].state = State.sent }

        /// A part of the request is.
        @inline(__always) func cut(_ slot: Int) { unsafe entries[slot & (FlightLog.slots - 1)].state = State.cut }

        /// The answer was read, or nothing of the request was sent.
        ///
        /// The state is that of an offered one from here on: where a process dies within the next ``offer(_:cookie:)``, whichever of the two
        /// words it had stored, nobody takes that request for one that was sent whole.
        @inline(__always) func end(_ slot: Int) {
            unsafe entries[slot & (FlightLog.slots - 1)] = Entry(cookie: 0, state: State.offered)
        }

        /// Requests were answered: those of `cookies` that are not in `unanswered`.
        func end(all cookies: [UInt64], but unanswered: Set<UInt64>) {
            for slot in 0..<FlightLog.slots {
                let cookie = unsafe entries[slot].cookie
                if cookie != 0, cookies.contains(cookie), !unanswered.contains(cookie) { end(slot) }
            }
        }

        /// Where to receive the next ``FlightLog/pieceBytes`` of a stream whose last bytes end at `place`: a header that is not all
        /// there stays in front of them.
        func room(behind place: Int) -> Int {
            guard place > FlightLog.bufferBytes - FlightLog.pieceBytes, let base = unsafe buffer.baseAddress else {
                return place
            }
            unsafe memcpy(base, base + place - FlightLog.headerBytesKept, FlightLog.headerBytesKept)
            return FlightLog.headerBytesKept
        }

        /// The cookies of what is under way, and whether all of it was sent. One that was cut off is none: the server waits for the rest of
        /// it, and does nothing.
        var outstanding: (cookies: [UInt64], isSentWhole: Bool) {
            let found = (0..<FlightLog.slots).map { unsafe entries[$0] }.filter {
                $0.cookie != 0 && $0.state != State.cut
            }
            return (found.map(\.cookie), found.allSatisfy { $0.state == State.sent })
        }
    }

    // MARK: What a successor asks

    /// Nothing that the server may still do is left: it was waited for.
    var isSettled: Bool {
        get { unsafe base.load(fromByteOffset: Self.settledPlace, as: UInt64.self) != 0 }
        set { unsafe base.storeBytes(of: newValue ? 1 : 0, toByteOffset: Self.settledPlace, as: UInt64.self) }
    }

    /// Before the process of this log there was one of which nobody has a log, and it was not yet waited for.
    var isBehindUnknown: Bool {
        get { unsafe base.load(fromByteOffset: Self.unknownPlace, as: UInt64.self) != 0 }
        set { unsafe base.storeBytes(of: newValue ? 1 : 0, toByteOffset: Self.unknownPlace, as: UInt64.self) }
    }

    /// Nothing is under way that changes the disk.
    var isClear: Bool { isSettled || (0..<Self.mostConnections).allSatisfy { part($0).outstanding.cookies.isEmpty } }

    /// The errno by which a connection ended in the process that used it; 0: the server closed it, or it did not end.
    func failure(of connection: Int) -> Int32 {
        unsafe base.load(fromByteOffset: Self.failurePlace + 4 * (connection & 7), as: Int32.self)
    }

    /// Notes by which errno a connection ended: whoever looks at the socket later does not learn it.
    func note(failure: Int32, of connection: Int) {
        unsafe base.storeBytes(of: failure, toByteOffset: Self.failurePlace + 4 * (connection & 7), as: Int32.self)
    }

    /// Seconds of CLOCK_BOOTTIME, which all processes of this system share; never 0.
    static var now: UInt64 {
        var time = timespec()
        unsafe clock_gettime(CLOCK_BOOTTIME, &time)
        return UInt64(max(1, time.tv_sec))
    }

    /// When the server was told that nothing follows on a connection, in seconds of ``now``; 0: it was not.
    func closing(of connection: Int) -> UInt64 {
        unsafe min(base.load(fromByteOffset: Self.closingPlace + 8 * (connection & 7), as: UInt64.self), Self.now)
    }

    /// Notes that the server is about to be told.
    func noteClosing(of connection: Int) {
        unsafe base.storeBytes(of: Self.now, toByteOffset: Self.closingPlace + 8 * (connection & 7), as: UInt64.self)
    }

    /// What is received on a connection is encrypted, and the keys ended with the process.
    func isEncrypted(_ connection: Int) -> Bool {
        unsafe base.load(fromByteOffset: Self.cipherPlace + (connection & 7), as: UInt8.self) != 0
    }

    /// Notes that a connection is encrypted.
    func noteEncryption(of connection: Int) {
        unsafe base.storeBytes(of: 1, toByteOffset: Self.cipherPlace + (connection & 7), as: UInt8.self)
    }
}
