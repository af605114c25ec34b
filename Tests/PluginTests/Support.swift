// SPDX-License-Identifier: BSD-2-Clause
// The mini host in Swift clothes: plugins from the build folder, temporary files, shell commands.
import PluginHost
import CLinux
import Glibc
import PluginCheck
import Synchronization
import Testing

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

extension Plugin {
    /// By path; `load()` is called once per process.
    private static let loaded = Mutex<[String: Plugin]>([:])

    /// A plugin of the build folder, or of another file.
    init(_ name: String, library path: String? = nil) throws(Failure) {
        let path = path ?? PluginTests.library(name)
        self = try Plugin.loaded.withLock { loaded throws(Failure) in
            if let known = loaded[path] { return known }
            let plugin = try Plugin(name: name, path: path)
            loaded[path] = plugin
            return plugin
        }
    }
}
