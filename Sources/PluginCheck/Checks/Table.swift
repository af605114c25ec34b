// SPDX-License-Identifier: BSD-2-Clause
// The description that the entry point returns.
import PluginHost
import Base
import Glibc
import PluginAPI

extension Check {
    static let table = [
        Check(.table, "accepted", "the host accepts the description and load() succeeds", need: .library) {
            bench throws(Failure) in
            bench.fact(PluginDescription(try bench.plugin.library).json.serialized)
        },
        Check(.table, "texts", "version, description and formats are fit for an operator", need: .library) {
            bench throws(Failure) in
            let library = try bench.plugin.library
            try require(!library.version.isEmpty, "the version is empty")
            try require(!library.summary.isEmpty, "the description is empty")
            for text in [library.version, library.summary] where text.contains(where: \.isNewline) {
                throw Failure("'\(text)' is more than one line")
            }
            for format in library.formats where !isWord(format) {
                throw Failure("format '\(format)' is not of a-z, 0-9 and '-'")
            }
            try require(Set(library.formats).count == library.formats.count, "a format is named twice")
            let table = unsafe try bench.plugin.table
            let model = unsafe Int(table.thread_model)
            try require(
                [XBB_THREADS_PROCESS, XBB_THREADS_DEVICE, XBB_THREADS_QUEUE].contains(model),
                "thread_model is \(model): XBB_THREADS_PROCESS, _DEVICE or _QUEUE is expected")
            let flags =
                unsafe table.flags
                & ~UInt32(XBB_PLUGIN_BLOCKING | XBB_PLUGIN_NETWORK | XBB_PLUGIN_RDONLY | XBB_PLUGIN_NO_FD)
            try require(flags == 0, "flags has bits that ABI 1.0 does not know: 0x\(String(flags, radix: 16))")
        },
        Check(.table, "options", "the options can be shown and their defaults are valid", need: .library) {
            bench throws(Failure) in
            let plugin = try bench.plugin
            let options = plugin.library.options
            try require(
                unsafe options.count == Int(plugin.table.option_count), "an option has no name")
            for (index, option) in options.enumerated() {
                let name = "option '\(option.name)'"
                try require(isWord(option.name), "\(name) is not called by [a-z][a-z0-9-]*")
                try require(
                    !option.help.isEmpty && !option.help.contains(where: \.isNewline),
                    "the help of \(name) is not one line"
                )
                try require(!options[..<index].contains { $0.name == option.name }, "\(name) is there twice")
                if case .unknown(let type) = option.kind { throw Failure("\(name) has the unknown type \(type)") }
                if case .choice(let choices) = option.kind {
                    try require(!choices.isEmpty, "\(name) is an ENUM without choices")
                }
                let raw = unsafe plugin.table.options[index]
                try require(unsafe raw.flags == 0 && raw.reserved == 0, "reserved fields of \(name) are not 0")
                guard let value = option.defaultText else { continue }
                do throws(OperationError) {
                    _ = try PluginOptionValues([option], given: [option.name: value])
                } catch {
                    throw Failure("the default of \(name) is not valid: \(error)")
                }
            }
        },
        Check(.table, "constant", "the entry point returns the same description each time", need: .library) {
            bench throws(Failure) in
            let plugin = try bench.plugin
            guard let library = unsafe dlopen(bench.subject.path, RTLD_NOW | RTLD_LOCAL),
                let symbol = unsafe dlsym(library, XBB_PLUGIN_ENTRY)
            else { throw Failure("it could be loaded once, and not again") }
            typealias Entry = @convention(c) () -> UnsafePointer<xbb_plugin>?
            let entry = unsafe unsafeBitCast(symbol, to: Entry.self)
            let (first, second) = unsafe (entry(), entry())
            try require(unsafe first == second, "two calls returned two descriptions: it is static const")
            let now = unsafe first?.pointee.submit.map { unsafe unsafeBitCast($0, to: UInt.self) }
            let then = unsafe plugin.table.submit.map { unsafe unsafeBitCast($0, to: UInt.self) }
            try require(now == then, "the description changed after load(): it is static const")
        },
    ]
}

/// [a-z][a-z0-9-]*
private func isWord(_ text: String) -> Bool {
    guard let first = text.utf8.first, (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(first) else { return false }
    return text.utf8.allSatisfy {
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains($0) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
            || $0 == UInt8(ascii: "-")
    }
}
