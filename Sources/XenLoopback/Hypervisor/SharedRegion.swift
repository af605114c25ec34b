// SPDX-License-Identifier: BSD-2-Clause
// Memory that several processes map, and this module's only way to access it: atomically.
//
// No word here is ever a lock. A process may be killed between any two accesses; what it leaves behind is either
// harmless or undone by the broker when the process's socket closes.
import Base
import CLinux
import Glibc
import Synchronization

extension Descriptor {
    /// An anonymous zeroed file that can neither shrink nor grow, so that a process that maps it never gets SIGBUS.
    static func sealedMemory(_ name: String, byteCount: Int) throws(OperationError) -> Descriptor {
        let raw = unsafe memfd_create(name, UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING))
        if raw < 0 { throw OperationError(errno, "memfd_create \(name)") }
        let file = Descriptor(owning: raw)
        if ftruncate(raw, byteCount) != 0 { throw OperationError(errno, "size \(name) to \(byteCount) bytes") }
        if clinux_fcntl_int(raw, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0 {
            throw OperationError(errno, "seal \(name)")
        }
        return file
    }

    /// The same file, open for reading only.
    func readOnlyCopy() throws(OperationError) -> Descriptor {
        let copy = unsafe clinux_open("/proc/self/fd/\(raw)", O_RDONLY | O_CLOEXEC, 0)
        if copy < 0 { throw OperationError(errno, "open shared memory read-only") }
        return Descriptor(owning: copy)
    }
}

/// A mapped file of shared memory, unmapped when the last reference is gone. Offsets are in bytes, aligned and checked.
@safe
final class SharedRegion: Sendable {
    /// `nonisolated(unsafe)`: the address is constant, and the accesses below are atomic.
    nonisolated(unsafe) let base: UnsafeMutableRawPointer
    let byteCount: Int

    /// Maps the first `byteCount` bytes of `file`.
    init(_ file: Descriptor, byteCount: Int, writable: Bool = true) throws(OperationError) {
        let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
        guard let base = unsafe clinux_mmap(nil, byteCount, protection, MAP_SHARED, file.raw, 0) else {
            throw OperationError(errno, "map \(byteCount) bytes of shared memory")
        }
        unsafe self.base = base
        self.byteCount = byteCount
    }

    /// Private zeroed memory with the same accessors, for lists that several threads share.
    init(privateBytes byteCount: Int) throws(OperationError) {
        guard
            let base = unsafe clinux_mmap(
                nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        else { throw OperationError(errno, "allocate \(byteCount) bytes") }
        unsafe self.base = base
        self.byteCount = byteCount
    }

    deinit {
        unsafe munmap(base, byteCount)
    }

    /// The address of `count` bytes at `offset`, valid while the region lives.
    @inline(__always)
    @unsafe func address(at offset: Int, count: Int) -> UnsafeMutableRawPointer {
        precondition(offset >= 0 && count >= 0 && offset <= byteCount - count)
        return unsafe base + offset
    }

    @inline(__always)
    private func at<Word: ~Copyable>(_ offset: Int, _ type: Word.Type) -> UnsafeMutablePointer<Word> {
        let size = MemoryLayout<Word>.size
        precondition(offset >= 0 && offset <= byteCount - size && offset & (size - 1) == 0)
        return unsafe (base + offset).assumingMemoryBound(to: Word.self)
    }

    /// Loads a 64-bit word; later accesses stay after it.
    @inline(__always)
    func load64(at offset: Int) -> UInt64 {
        unsafe at(offset, Atomic<UInt64>.self).pointee.load(ordering: .sequentiallyConsistent)
    }

    /// Loads a 32-bit word; later accesses stay after it.
    @inline(__always)
    func load32(at offset: Int) -> UInt32 {
        unsafe at(offset, Atomic<UInt32>.self).pointee.load(ordering: .acquiring)
    }

    /// Loads a 16-bit word; later accesses stay after it.
    @inline(__always)
    func load16(at offset: Int) -> UInt16 {
        unsafe at(offset, Atomic<UInt16>.self).pointee.load(ordering: .acquiring)
    }

    /// Loads a byte with no ordering.
    @inline(__always)
    func load8(at offset: Int) -> UInt8 {
        unsafe at(offset, Atomic<UInt8>.self).pointee.load(ordering: .relaxed)
    }

    /// Stores a byte after everything before it.
    @inline(__always)
    func storeRelease8(_ value: UInt8, at offset: Int) {
        unsafe at(offset, Atomic<UInt8>.self).pointee.store(value, ordering: .releasing)
    }

    /// Stores a byte with no ordering.
    @inline(__always)
    func store8(_ value: UInt8, at offset: Int) {
        unsafe at(offset, Atomic<UInt8>.self).pointee.store(value, ordering: .relaxed)
    }

    /// Stores a 16-bit word after everything before it.
    @inline(__always)
    func storeRelease16(_ value: UInt16, at offset: Int) {
        unsafe at(offset, Atomic<UInt16>.self).pointee.store(value, ordering: .releasing)
    }

    /// Stores a 32-bit word after everything before it.
    @inline(__always)
    func storeRelease32(_ value: UInt32, at offset: Int) {
        unsafe at(offset, Atomic<UInt32>.self).pointee.store(value, ordering: .releasing)
    }

    /// Stores a 32-bit word with no ordering.
    @inline(__always)
    func store32(_ value: UInt32, at offset: Int) {
        unsafe at(offset, Atomic<UInt32>.self).pointee.store(value, ordering: .relaxed)
    }

    /// Replaces a 16-bit word if it is `expected`; returns the old value.
    @inline(__always)
    func exchange16(from expected: UInt16, to value: UInt16, at offset: Int) -> UInt16 {
        unsafe at(offset, Atomic<UInt16>.self).pointee
            .compareExchange(expected: expected, desired: value, ordering: .sequentiallyConsistent).original
    }

    /// Replaces a 32-bit word if it is `expected`; returns the old value.
    @inline(__always)
    func exchange32(from expected: UInt32, to value: UInt32, at offset: Int) -> UInt32 {
        unsafe at(offset, Atomic<UInt32>.self).pointee
            .compareExchange(expected: expected, desired: value, ordering: .sequentiallyConsistent).original
    }

    /// Sets bits of a 32-bit word; returns the old value.
    @inline(__always)
    func setBits32(_ bits: UInt32, at offset: Int) -> UInt32 {
        unsafe at(offset, Atomic<UInt32>.self).pointee.bitwiseOr(bits, ordering: .sequentiallyConsistent).oldValue
    }

    /// Clears bits of a 32-bit word; returns the old value.
    @inline(__always)
    func clearBits32(_ bits: UInt32, at offset: Int) -> UInt32 {
        unsafe at(offset, Atomic<UInt32>.self).pointee.bitwiseAnd(~bits, ordering: .sequentiallyConsistent).oldValue
    }

    /// Clears bits of a 16-bit word; returns the old value.
    @inline(__always)
    func clearBits16(_ bits: UInt16, at offset: Int) -> UInt16 {
        unsafe at(offset, Atomic<UInt16>.self).pointee.bitwiseAnd(~bits, ordering: .sequentiallyConsistent).oldValue
    }
}
