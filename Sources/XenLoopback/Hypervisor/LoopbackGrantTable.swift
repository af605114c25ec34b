// SPDX-License-Identifier: BSD-2-Clause
// The backend's grant table on loopback: copies in this process, maps with the broker's knowledge.
import Base
import CLinux
import CXen
import Glibc
import Memory
import Synchronization
public import Xen

/// Grant copy and map over shared memory, with the checks and the status codes of Xen (xen/common/grant_table.c).
///
/// A copy makes no system call once the domain's memory is mapped. Use from one thread.
@safe
public final class LoopbackGrantTable: GrantTable {
    private let connection: HypervisorConnection
    private let domain: DomainID
    private let copiesData: Bool
    private var views: [GuestView] = []
    /// The view that the last copy used.
    private var recent: GuestView?
    private var mappings: [UInt64: Mapping] = [:]

    private struct Mapping {
        let number: UInt32
        let byteCount: Int
    }

    /// Connects to the hypervisor of `directory` as `domain`. Without `copiesData`, copies are checked but not carried
    /// out.
    public init(
        directory: String = LoopbackXen.defaultDirectory, domain: DomainID = 0, copiesData: Bool = true
    ) throws(OperationError) {
        connection = try HypervisorConnection(directory: directory, domain: domain)
        self.domain = domain
        self.copiesData = copiesData
    }

    deinit {
        for (cookie, mapping) in mappings {
            guard let address = unsafe UnsafeMutableRawPointer(bitPattern: UInt(cookie)) else { continue }
            unsafe munmap(address, mapping.byteCount)
        }
    }

    /// Copies as gntdev and Xen do: EINVAL for the whole batch if an operation crosses its page, otherwise a status for
    /// each.
    ///
    /// `GNTST_bad_domain`: no such domain. `GNTST_bad_gntref`: no such entry. `GNTST_general_error`: not granted, not
    /// to this domain, or read-only and written to. `GNTST_bad_page`: the frame is not in the domain's memory.
    public func copy(_ batch: inout GrantCopyBatch) throws(OperationError) {
        let count = batch.count
        guard let segments = unsafe batch.segments.baseAddress else { return }
        for index in 0..<count {
            let end = unsafe Int(cxen_copy_offset(segments + index)) + Int(segments[index].len)
            if end > GrantTableLayout.pageBytes { throw OperationError(EINVAL, "grant copy of \(count) operations") }
        }
        var start = 0
        while start < count {
            let domain = unsafe cxen_copy_domain(segments + start)
            var end = start + 1
            while end < count, unsafe cxen_copy_domain(segments + end) == domain { end += 1 }
            unsafe copyRun(segments + start, end - start, domain)
            start = end
        }
    }

    /// Copies operations of one domain: mark all references, one fence, then check and copy each, then unmark.
    private func copyRun(
        _ segments: UnsafeMutablePointer<xengnttab_grant_copy_segment_t>, _ count: Int, _ domain: DomainID
    ) {
        let view: GuestView
        if let recent, recent.domain == domain, recent.isAlive {
            view = recent
        } else {
            switch findView(domain) {
            case .success(let found):
                view = found
                recent = found
            case .failure(let error):
                let status = Int16(error.code == ESRCH ? GNTST_bad_domain : GNTST_general_error)
                for index in 0..<count {
                    unsafe segments[index].status = segments[index].len == 0 ? GrantCopyBatch.okay : status
                }
                return
            }
        }
        let entries = view.entryCount
        for index in 0..<count {
            let reference = unsafe Int(cxen_copy_reference(segments + index))
            if reference < entries { view.mark(reference) }
        }
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        for index in 0..<count {
            unsafe segments[index].status = copyOne(segments + index, view)
        }
        for index in 0..<count {
            let reference = unsafe Int(cxen_copy_reference(segments + index))
            if reference < entries { view.unmark(reference) }
        }
    }

    /// The checks of acquire_grant_for_copy() in its order, then the bytes.
    ///
    /// Unsafe: the guest's range is checked against its memory below and by copy() against its page; the host's range
    /// is the caller's, as in libxengnttab.
    @inline(__always)
    private func copyOne(
        _ segment: UnsafeMutablePointer<xengnttab_grant_copy_segment_t>, _ view: GuestView
    ) -> Int16 {
        let length = unsafe Int(segment.pointee.len)
        if length == 0 { return GrantCopyBatch.okay }
        let reference = unsafe Int(cxen_copy_reference(segment))
        if reference >= view.entryCount { return Int16(GNTST_bad_gntref) }
        let entry = view.entry(reference)
        let toGuest = unsafe cxen_copy_to_guest(segment) != 0
        if entry.flags & GrantFlags.typeMask != GrantFlags.permitAccess || entry.domain != domain {
            return Int16(GNTST_general_error)
        }
        if toGuest && entry.flags & GrantFlags.readOnly != 0 { return Int16(GNTST_general_error) }
        if Int(entry.frame) >= view.pageCount { return Int16(GNTST_bad_page) }
        guard copiesData, let host = unsafe cxen_copy_host(segment) else { return GrantCopyBatch.okay }
        let offset = unsafe Int(entry.frame) * GrantTableLayout.pageBytes + Int(cxen_copy_offset(segment))
        let guest = unsafe view.memory.address(at: offset, count: length)
        if toGuest {
            unsafe memcpy(guest, host, length)
        } else {
            unsafe memcpy(host, guest, length)
        }
        return GrantCopyBatch.okay
    }

    /// The view of a living domain: this handle's own, or a new one from the broker.
    private func findView(_ domain: DomainID) -> Result<GuestView, OperationError> {
        if let index = views.firstIndex(where: { $0.domain == domain }) {
            let view = views[index]
            if view.isAlive { return .success(view) }
            views.remove(at: index)
            recent = nil
            _ = try? connection.call(.detach, [view.serial], for: "leave domain \(domain)")
        }
        do {
            let view = try GuestView(domain, over: connection)
            views.append(view)
            return .success(view)
        } catch {
            return .failure(error)
        }
    }

    /// Maps references, at most 16384. EINVAL, as from gntdev, if one of them may not be mapped; nothing is mapped
    /// then.
    ///
    /// For a grant that this domain maps already, the flags at the time of the first map count, as in Xen.
    public func map(
        _ references: [UInt32], of domain: DomainID, writable: Bool
    ) throws(OperationError) -> GrantMapping {
        let purpose = "map \(references.count) grants of domain \(domain)"
        if references.isEmpty || references.count > HypervisorProtocol.mapLimit {
            throw OperationError(EINVAL, purpose)
        }
        let view: GuestView
        switch findView(domain) {
        case .success(let found): view = found
        case .failure(let error): throw error.code == ESRCH ? OperationError(EINVAL, purpose) : error
        }
        let answer = try connection.call(.map, [view.serial, writable ? 1 : 0] + references, for: purpose)
        let number = answer.word(0)
        let frames = Array(answer.words.dropFirst())
        do throws(OperationError) {
            if frames.count != references.count { throw OperationError(EPROTO, purpose) }
            let address = try unsafe place(frames, of: view, writable: writable, purpose)
            let byteCount = frames.count * GrantTableLayout.pageBytes
            let cookie = UInt64(UInt(bitPattern: address))
            mappings[cookie] = Mapping(number: number, byteCount: byteCount)
            return unsafe GrantMapping(pages: SharedPages(base: address, byteCount: byteCount), cookie: cookie)
        } catch {
            _ = try? connection.call(.unmap, [number], for: purpose)
            throw error
        }
    }

    /// Maps frames next to each other: reserves address space, then maps each run of consecutive frames into it.
    ///
    /// Unsafe: every page is mapped inside the reserved range, which nobody else knows yet.
    private func place(
        _ frames: [UInt32], of view: GuestView, writable: Bool, _ purpose: String
    ) throws(OperationError) -> UnsafeMutableRawPointer {
        let pageBytes = GrantTableLayout.pageBytes
        let total = frames.count * pageBytes
        guard
            let base = unsafe clinux_mmap(
                nil, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        else { throw OperationError(errno, purpose) }
        var first = 0
        while first < frames.count {
            var end = first + 1
            while end < frames.count && frames[end] == frames[end - 1] &+ 1 { end += 1 }
            let placed = unsafe clinux_mmap(
                base + first * pageBytes, (end - first) * pageBytes, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                MAP_SHARED | MAP_FIXED, view.file.raw, Int64(frames[first]) * Int64(pageBytes))
            if unsafe placed == nil {
                let code = errno
                unsafe munmap(base, total)
                throw OperationError(code, purpose)
            }
            first = end
        }
        return unsafe base
    }

    /// Unmaps; EINVAL for pages that this handle does not map.
    public func unmap(_ mapping: GrantMapping) throws(OperationError) {
        guard let mapped = mappings.removeValue(forKey: mapping.cookie),
            let address = unsafe UnsafeMutableRawPointer(bitPattern: UInt(mapping.cookie))
        else { throw OperationError(EINVAL, "unmap pages that are not mapped") }
        unsafe munmap(address, mapped.byteCount)
        _ = try connection.call(.unmap, [mapped.number], for: "unmap granted pages")
    }
}
