// SPDX-License-Identifier: BSD-2-Clause
// The C face of a comparison of two readers: what `extension("xbb.draft.compare/1")` of a plugin gives, docs/plugin-abi.md.
import Glibc
import PluginAPI

/// The types of the extension, which the header does not have.
enum ComparisonCall {
    static let name = "xbb.draft.compare/1"
    /// Of what is said: 1 progress (done, total), 2 difference, 3 known fault, 4 not compared, 5 not readable at all.
    typealias Report =
        @convention(c) (
            _ argument: UnsafeMutableRawPointer?, _ kind: UInt32, _ offset: UInt64, _ length: UInt64,
            _ first: UnsafePointer<CChar>?, _ second: UnsafePointer<CChar>?
        ) -> Int32
    typealias Function =
        @convention(c) (
            _ open: UnsafePointer<xbb_open>?, _ report: Report?, _ argument: UnsafeMutableRawPointer?,
            _ failure: UnsafeMutablePointer<xbb_error>?
        ) -> Int32

    /// struct { uint32_t struct_size; uint32_t reserved; function }
    @safe
    struct Table {
        let size: UInt32
        let reserved: UInt32
        let compare: Function
    }
}

/// Made once, and never released.
nonisolated(unsafe) let immortalComparison: UnsafePointer<ComparisonCall.Table> = {
    let table = UnsafeMutablePointer<ComparisonCall.Table>.allocate(capacity: 1)
    unsafe table.initialize(
        to: ComparisonCall.Table(size: UInt32(MemoryLayout<ComparisonCall.Table>.size), reserved: 0) {
            open, report, argument, failure in
            guard let plugin = unsafe LoadedPlugin.current, let inspector = plugin.inspector,
                let report = unsafe report,
                let opening = unsafe Opening(open, options: plugin.options)
            else { return -EINVAL }
            do throws(PluginError) {
                try inspector.compare(opening) { said in
                    unsafe said.tell { kind, offset, length, first, second in
                        unsafe report(argument, kind, offset, length, first, second) == 0
                    }
                }
                return 0
            } catch {
                return unsafe error.report(to: failure)
            }
        })
    return unsafe UnsafePointer(table)
}()

extension ImageComparison {
    /// Calls `body` with the C form, valid for the call.
    fileprivate func tell(
        _ body: (UInt32, UInt64, UInt64, UnsafePointer<CChar>?, UnsafePointer<CChar>?) -> Bool
    ) -> Bool {
        switch self {
        case .progress(let done, let total): body(1, done, total, nil, nil)
        case .difference(let range, let first, let second): unsafe Self.tell(2, range, first, second, body)
        case .knownFault(let range, let name, let words): unsafe Self.tell(3, range, name, words, body)
        case .skipped(let range, let reason): unsafe Self.tell(4, range, reason, "", body)
        case .unreadable(let reason): unsafe Self.tell(5, 0..<0, reason, "", body)
        }
    }

    private static func tell(
        _ kind: UInt32, _ range: Range<UInt64>, _ first: String, _ second: String,
        _ body: (UInt32, UInt64, UInt64, UnsafePointer<CChar>?, UnsafePointer<CChar>?) -> Bool
    ) -> Bool {
        unsafe first.withCString { first in
            unsafe second.withCString { second in
                unsafe body(kind, range.lowerBound, range.upperBound - range.lowerBound, first, second)
            }
        }
    }
}
