// SPDX-License-Identifier: BSD-2-Clause
// The mini host in Swift clothes: plugins from the build folder, temporary files, shell commands.
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import Synchronization
import Testing

/// A failure of the test's surroundings or of an `open()`.
struct Failure: Error, CustomStringConvertible {
    let description: String
    var code: Int32 = 0
}

/// The folder with the built products: that of the test executable, or XBB_BUILD_DIR.
let buildFolder: String = {
    if let given = getenv("XBB_BUILD_DIR") { return String(cString: given) }
    var path = [CChar](repeating: 0, count: 4096)
    let length = readlink("/proc/self/exe", &path, path.count - 1)
    let executable = String(decoding: path[..<max(length, 0)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    // The executable is in the folder itself, or the runner was given the bundle's path.
    for candidate in [executable] + CommandLine.arguments where candidate.contains(".xctest") {
        return String(candidate[..<(candidate.range(ofFirst: "/", before: ".xctest") ?? candidate.startIndex)])
    }
    return String(executable[..<(executable.lastIndex(of: "/") ?? executable.startIndex)])
}()

extension String {
    /// The index of the last `/` in front of `marker`.
    func range(ofFirst separator: Character, before marker: String) -> String.Index? {
        var rest = self[...]
        while let slash = rest.lastIndex(of: separator) {
            if !rest[slash...].dropFirst().contains(separator), rest[slash...].contains(marker) { return slash }
            rest = rest[..<slash]
        }
        return nil
    }
}

/// The C string in an array.
func text(_ characters: [CChar]) -> String {
    String(decoding: characters.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

func library(_ name: String) -> String { "\(buildFolder)/libxbb-\(name).so" }

/// Runs a shell command; its output with the errors, and the exit status.
@discardableResult
func shell(_ command: String) -> (status: Int32, output: String) {
    guard let pipe = popen("(\(command)) 2>&1", "r") else { return (-1, "popen: \(errno)") }
    var output: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 4096)
    while case let count = fread(&chunk, 1, chunk.count, pipe), count > 0 { output += chunk[..<count] }
    let status = pclose(pipe)
    return (status & 0x7f == 0 ? (status >> 8) & 0xff : -1, String(decoding: output, as: UTF8.self))
}

/// A folder that vanishes with its owner.
final class TemporaryFolder {
    let path: String

    init() {
        var template = Array("/tmp/xbb-plugin-XXXXXX".utf8CString)
        path = mkdtemp(&template).map { String(cString: $0) } ?? "/nonexistent"
    }

    deinit { shell("umount -q \(path)/mount; rm -rf \(path)") }

    func file(_ name: String, size: Int) -> String {
        let name = "\(path)/\(name)"
        let fd = clinux_open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        _ = ftruncate(fd, size)
        close(fd)
        return name
    }
}

/// A plugin loaded once per process.
struct Plugin {
    let handle: OpaquePointer
    /// By path; `load()` is called once per process.
    private static let loaded = Mutex<[String: UInt]>([:])

    var table: xbb_plugin { harness_table(handle).pointee }

    init(_ name: String, library path: String? = nil) throws {
        let path = path ?? library(name)
        let found = try Plugin.loaded.withLock { loaded throws(Failure) in
            if let known = loaded[path] { return known }
            var message = [CChar](repeating: 0, count: 256)
            guard let handle = harness_load(path, name, &message) else {
                throw Failure(description: "\(path): \(text(message))")
            }
            loaded[path] = UInt(bitPattern: handle)
            return UInt(bitPattern: handle)
        }
        guard let handle = OpaquePointer(bitPattern: found) else { throw Failure(description: "no handle") }
        self.handle = handle
    }

    /// The values of all options, from their defaults and `given`, parsed as the host does it.
    func values(_ given: [String: String], keeping strings: inout [UnsafeMutablePointer<CChar>]) throws -> [xbb_value] {
        var values: [xbb_value] = []
        var left = given
        for index in 0..<Int(table.option_count) {
            let option = table.options[index]
            let name = String(cString: option.name)
            guard let text = left.removeValue(forKey: name) ?? option.def.map({ String(cString: $0) }) else {
                throw Failure(description: "option \(name) is required")
            }
            values.append(try value(text, option, &strings))
        }
        guard left.isEmpty else { throw Failure(description: "no such option: \(left.keys)") }
        return values
    }

    private func value(_ text: String, _ option: xbb_option, _ strings: inout [UnsafeMutablePointer<CChar>]) throws
        -> xbb_value
    {
        var value = xbb_value()
        switch Int(option.type) {
        case XBB_OPT_BOOL: value.num = ["on", "true", "1"].contains(text) ? 1 : 0
        case XBB_OPT_UINT, XBB_OPT_SIZE:
            let shift = ["K": 10, "M": 20, "G": 30, "T": 40][String(text.suffix(1))]
            guard let number = UInt64(shift == nil ? text : String(text.dropLast())) else {
                throw Failure(description: "not a number: \(text)")
            }
            value.num = number << (shift ?? 0)
            guard value.num >= option.min, value.num <= option.max else {
                throw Failure(description: "out of range: \(text)")
            }
        case XBB_OPT_ENUM:
            var index = 0
            while let choice = option.choices[index] {
                if String(cString: choice) == text {
                    value.num = UInt64(index)
                    value.str = choice
                    return value
                }
                index += 1
            }
            throw Failure(description: "no such choice: \(text)")
        default:
            strings.append(strdup(text))
            value.str = UnsafePointer(strings[strings.count - 1])
        }
        return value
    }
}

/// An open disk; its queues must be closed before it goes away.
final class Disk {
    let handle: OpaquePointer
    let fd: Int32
    private let values: UnsafeMutableBufferPointer<xbb_value>

    /// Opens `path` as the host would and hands it to the plugin; `path` nil: no descriptor.
    init(
        _ plugin: Plugin, _ path: String? = nil, readOnly: Bool = false, openFlags: Int32 = 0,
        pretendWritable: Bool = false, _ options: [String: String] = [:]
    ) throws {
        var fd: Int32 = -1
        if let path {
            fd = clinux_open(path, (readOnly || pretendWritable ? O_RDONLY : O_RDWR) | O_CLOEXEC | openFlags, 0)
            guard fd >= 0 else { throw Failure(description: "open \(path)", code: -errno) }
        }
        var strings: [UnsafeMutablePointer<CChar>] = []
        let list = try plugin.values(options, keeping: &strings)
        values = .allocate(capacity: max(list.count, 1))
        for (index, value) in list.enumerated() { values[index] = value }
        var handle: OpaquePointer?
        var error = xbb_error()
        let flags = (readOnly ? XBB_OPEN_RDONLY : 0) | (openFlags & clinux_O_DIRECT != 0 ? XBB_OPEN_DIRECT : 0)
        let code = harness_open(plugin.handle, fd, UInt32(flags), values.baseAddress, &handle, &error)
        self.fd = fd
        guard code == 0, let handle else {
            close(fd)
            values.deallocate()
            throw Failure(description: error.text, code: code)
        }
        self.handle = handle
    }

    deinit {
        harness_close(handle)
        close(fd)
        values.deallocate()
    }

    var info: xbb_info {
        var info = xbb_info()
        #expect(harness_info(handle, &info) == 0)
        return info
    }

    var log: String {
        var text = [CChar](repeating: 0, count: 8192)
        harness_log(handle, &text, UInt64(text.count))
        return PluginTests.text(text)
    }

    var breaches: UInt32 { harness_breaches(handle) }
    func can(_ capability: UInt64) -> Bool { info.caps & capability != 0 }
    func statistic(_ name: String) -> UInt64 { harness_stat(handle, name) }

    /// (offset, length, flags) of each extent.
    func extents(_ offset: UInt64 = 0, _ length: UInt64 = .max) -> [[UInt64]] {
        var triples = [UInt64](repeating: 0, count: 3 * 1024)
        let count = harness_extents(handle, offset, length, &triples, 1024)
        return (0..<max(Int(count), 0)).map { Array(triples[$0 * 3..<$0 * 3 + 3]) }
    }
}

extension xbb_error {
    var text: String {
        withUnsafeBytes(of: message) { bytes in String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self) }
    }
}
