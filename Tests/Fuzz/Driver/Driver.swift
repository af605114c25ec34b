// SPDX-License-Identifier: BSD-2-Clause
// Hands a program's targets to libFuzzer.
import Glibc
import TestSupport

/// libFuzzer's own main().
@_silgen_name("LLVMFuzzerRunDriver")
private func runDriver(
    _ argc: UnsafeMutablePointer<CInt>,
    _ argv: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
    _ run: @convention(c) (UnsafeRawPointer?, Int) -> CInt
) -> CInt

/// What is attacked. Its numbers come from the input; what it gives is what went wrong, in words.
public typealias FuzzTarget = () throws -> [String]

private nonisolated(unsafe) var chosen: FuzzTarget = { [] }

/// Writes a line to standard error.
public func say(_ line: String) { _ = Array("\(line)\n".utf8).withUnsafeBytes { write(2, $0.baseAddress, $0.count) } }

/// Fuzzes the target that XBB_FUZZ_TARGET names, with libFuzzer's options from the command line.
public func fuzz(_ targets: [String: FuzzTarget]) -> Never {
    let name = getenv("XBB_FUZZ_TARGET").map { String(cString: $0) } ?? ""
    guard let target = targets[name] else {
        say("XBB_FUZZ_TARGET is one of \(targets.keys.sorted().joined(separator: ", "))")
        exit(64)
    }
    chosen = target
    var argc = CommandLine.argc
    var argv = CommandLine.unsafeArgv
    exit(
        runDriver(&argc, &argv) { base, count in
            let problems: [String]
            do {
                problems = try FuzzInput.run(UnsafeRawBufferPointer(start: base, count: count)) { try chosen() }
            } catch {
                problems = ["\(error)"]
            }
            guard problems.isEmpty else {
                say(problems.joined(separator: "\n"))
                abort()
            }
            return 0
        })
}
