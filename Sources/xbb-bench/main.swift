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
           xbb-bench ring [--plugin-dir DIR] [--repeat N] [--requests N] [--depth N] [--backend NAME] [--poll-us N] [--spins N]
                          [--plugin FILE [--option NAME=VALUE]...]... [--disk-mib N] [--sectors N]

    steps  ns for each of the pure steps of a request
    ring   requests/s of a ring of 8 pages: XBB with the null plugin, with and without the copy of data, and a C echo
           backend of the ring's macros, in alternating runs at depths 1, 32 and 256. Prints JSON. With --plugin: the
           null plugin with the copy of data and the plugins FILE (xbb-NAME.so) with their options, on a disk of which
           --disk-mib (1024) are read, and the processor time that the host needs more for a request with them.
           --sectors: how much each request reads of a page of 8 sectors, all by default.

    """

func fail(_ text: String) -> Never {
    let line = "xbb-bench: \(text)\n"
    _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
    exit(1)
}

var arguments = CommandLine.arguments.dropFirst()[...]
var settings = RingBenchSettings()
var plugins: [RingBackend] = []
let mode = arguments.popFirst() ?? "--help"
while let name = arguments.popFirst() {
    guard let value = arguments.popFirst() else { fail("\(name) needs a value") }
    switch name {
    case "--plugin-dir": settings.pluginDirectory = value
    case "--repeat": settings.repeats = Int(value) ?? settings.repeats
    case "--requests": settings.requests = UInt64(value) ?? settings.requests
    case "--poll-us": settings.pollNanoseconds = (UInt64(value) ?? 0) * 1000
    case "--spins": settings.spins = Int(value) ?? settings.spins
    case "--depth": settings.depths = [max(1, min(256, Int(value) ?? 256))]
    case "--backend":
        guard let backend = RingBackend.all.first(where: { $0.name == value }) else {
            fail("--backend: xbb, xbb_with_copy or c_echo")
        }
        settings.backends = [backend]
    case "--disk-mib": settings.diskMebibytes = max(1, UInt64(value) ?? settings.diskMebibytes)
    case "--sectors": settings.sectors = max(1, min(8, UInt8(value) ?? 8))
    case "--plugin":
        guard let plugin = RingBackend.plugin(value) else { fail("--plugin \(value): expected a file xbb-NAME.so") }
        plugins.append(plugin)
    case "--option":
        let pair = value.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        guard pair.count == 2, let last = plugins.indices.last else {
            fail("--option NAME=VALUE stands behind --plugin")
        }
        plugins[last].options[pair[0]] = pair[1]
    default: fail("unknown option \(name)\n\(usage)")
    }
}
if !plugins.isEmpty { settings.backends = [.xbbWithCopy] + plugins }
switch mode {
case "steps": runSteps()
case "ring":
    do { try RingBench(settings).run() } catch { fail("\(error)") }
default: print(usage, terminator: "")
}
