// SPDX-License-Identifier: BSD-2-Clause
// Measures the host's own code: pure steps, and a ring with the null plugin beside a bare C backend on the same ring.
import PluginHost
import Blkif
import Blkfront
import CLinux
import Glibc
import Memory
import XenLoopback
import Support

let usage = """
    usage: xbb-bench steps
           xbb-bench --help | --version
           xbb-bench ring [--plugin-dir DIR] [--repeat N] [--requests N] [--depth N] [--backend NAME] [--poll-us N] [--spins N]
                          [--plugin FILE [--option NAME=VALUE]...]... [--disk-mib N] [--sectors N]

    steps  ns for each of the pure steps of a request
    ring   requests/s of a ring of 8 pages: XBB with the null plugin, with and without the copy of data, and a C echo
           backend of the ring's macros, in alternating runs at depths 1, 32 and 256. Prints JSON. With --plugin: the
           null plugin with the copy of data and the plugins FILE (xbb-NAME.so) with their options, on a disk of which
           --disk-mib (1024) are read, and the processor time that the host needs more for a request with them.
           --sectors: how much each request reads of a page of 8 sectors, all by default.

    Exit status: 0 done, 1 failed, 64 wrong usage.

    """

func fail(_ text: String) -> Never {
    let line = "xbb-bench: \(text)\n"
    _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
    exit(1)
}

/// Of words that cannot be understood.
func refuse(_ text: String) -> Never {
    let line = "xbb-bench: \(text)\n\(usage)"
    _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
    exit(64)
}

func number<Value: FixedWidthInteger>(_ text: String, _ name: String, _ range: ClosedRange<Value>) -> Value {
    guard let value = Value(text), range.contains(value) else {
        refuse("\(name) \(text): expected a number from \(range.lowerBound) to \(range.upperBound)")
    }
    return value
}

var arguments = CommandLine.arguments.dropFirst()[...]
var settings = RingBenchSettings()
var plugins: [RingBackend] = []
guard let mode = arguments.popFirst() else { refuse("steps, or ring?") }
switch mode {
case "--help", "-h":
    print(usage, terminator: "")
    exit(0)
case "--version":
    print("xbb-bench \(xbbVersion)")
    exit(0)
case "steps", "ring": break
default: refuse("'\(mode)' is neither steps nor ring")
}
while let name = arguments.popFirst() {
    guard let value = arguments.popFirst() else { refuse("\(name) needs a value") }
    switch name {
    case "--plugin-dir": settings.pluginDirectory = value
    case "--repeat": settings.repeats = number(value, name, 1...1_000_000)
    case "--requests": settings.requests = number(value, name, 1...1 << 40)
    case "--poll-us": settings.pollNanoseconds = number(value, name, 0...1_000_000) * 1000
    case "--spins": settings.spins = number(value, name, 0...1 << 30)
    case "--depth": settings.depths = [number(value, name, 1...256)]
    case "--backend":
        guard let backend = RingBackend.all.first(where: { $0.name == value }) else {
            refuse("--backend \(value): expected xbb, xbb_with_copy or c_echo")
        }
        settings.backends = [backend]
    case "--disk-mib": settings.diskMebibytes = number(value, name, 1...1 << 20)
    case "--sectors": settings.sectors = number(value, name, 1...8)
    case "--plugin":
        guard let plugin = RingBackend.plugin(value) else { refuse("--plugin \(value): expected a file xbb-NAME.so") }
        plugins.append(plugin)
    case "--option":
        let pair = value.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        guard pair.count == 2, let last = plugins.indices.last else {
            refuse("--option NAME=VALUE stands behind --plugin")
        }
        plugins[last].options[pair[0]] = pair[1]
    default: refuse("unknown option \(name)")
    }
}
if !plugins.isEmpty { settings.backends = [.xbbWithCopy] + plugins }
switch mode {
case "steps": runSteps()
default:
    do { try RingBench(settings).run() } catch { fail("\(error)") }
}
