// SPDX-License-Identifier: BSD-2-Clause
// What every plugin of this package must be before it is opened: one exported symbol, a sane table, a header that
// compiles everywhere.
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import Testing

@Suite struct TableTests {
    static let names = ["file", "rawdisk", "qcow", "vhd", "null", "error", "delay"]

    @Test(arguments: names)
    func exportsOneSymbol(name: String) {
        let symbols = shell("nm -D --extern-only --defined-only \(library(name))")
        #expect(symbols.status == 0, "\(symbols.output)")
        let lines = symbols.output.split(separator: "\n")
        #expect(lines.count == 1 && lines.first?.hasSuffix(" T xbb_plugin_v1") == true, "\(symbols.output)")
    }

    @Test(arguments: names)
    func needsNothingOfTheHost(name: String) {
        let missing = shell("ldd -r \(library(name)) | grep -E 'undefined|not found'")
        #expect(missing.output.isEmpty, "\(missing.output)")
        let stack = shell("readelf -lW \(library(name)) | grep GNU_STACK")
        #expect(stack.output.contains("RW ") && !stack.output.contains("RWE"), "\(stack.output)")
        #expect(!shell("readelf -dW \(library(name))").output.contains("TEXTREL"))
    }

    @Test(arguments: names)
    func tableIsSane(name: String) throws {
        let table = try Plugin(name).table
        #expect(table.struct_size == UInt32(MemoryLayout<xbb_plugin>.size))
        #expect(table.abi_minor == UInt16(XBB_ABI_MINOR))
        #expect(table.formats[0] != nil)
        #expect((table.probe == nil) == !["qcow", "vhd"].contains(name), "raw has no probe")
        for index in 0..<Int(table.option_count) {
            let option = table.options[index]
            let name = String(cString: option.name)
            #expect(name.allSatisfy { $0.isLowercase || $0.isNumber || $0 == "-" }, "\(name)")
            #expect(option.def != nil, "\(name) has no default")
            #expect(!String(cString: option.help).contains("\n"))
        }
        _ = try Plugin(name).values([:])
    }

    @Test(arguments: names)
    func refusesAnotherAbiMajor(name: String) throws {
        guard name != "null", let load = try Plugin(name).table.load else { return }
        var host = xbb_host()
        host.struct_size = UInt32(MemoryLayout<xbb_host>.size)
        host.abi_major = 2
        #expect(load(&host) == -EINVAL)
    }

    /// Read-only disks have no capability that changes data.
    @Test(arguments: ["null", "error", "delay"])
    func readOnlyDisksOnlyRead(name: String) throws {
        let disk = try Disk(Plugin(name), readOnly: true)
        #expect(!disk.can(XBB_CAP_WRITE) && !disk.can(XBB_CAP_DISCARD) && !disk.can(XBB_CAP_WRITE_ZEROES))
    }
}

@Suite struct HeaderTests {
    private static let header = #filePath.replacing(
        "Tests/PluginTests/TableTests.swift", with: "Sources/PluginAPI/include")

    static let compilers = [
        "gcc -std=c11", "gcc -std=c17", "g++ -std=c++17", "g++ -std=c++20", "clang -std=c11", "clang++ -std=c++17",
    ]

    /// The header alone, with the warnings that a plugin's author may have on.
    @Test(arguments: compilers)
    func compilesAlone(compiler: String) {
        let language = compiler.contains("++") ? "c++" : "c"
        let command = "\(compiler) -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I\(HeaderTests.header)"
        let program = "#include <xbb_plugin.h>"
        let result = shell("echo '\(program)' | \(command) -x \(language) -")
        #expect(result.status == 0, "\(result.output)")
    }

    /// A C++ plugin: designated initialisers are C++20, so the header must not need them.
    @Test func servesAPluginInCxx17() {
        let program = """
            #include <xbb_plugin.h>
            static xbb_plugin make() { xbb_plugin p = {}; p.struct_size = sizeof p; return p; }
            static const xbb_plugin description = make();
            extern "C" XBB_PLUGIN_EXPORT(description)
            int main() { return XBB_HAS(&description, extension) && !XBB_CAN(&description, stats) ? 0 : 1; }
            """
        let folder = TemporaryFolder()
        let command = "g++ -std=c++17 -Wall -Wextra -Werror -I\(HeaderTests.header) -x c++ - -o \(folder.path)/program"
        let result = shell("cat <<'END' | \(command) && \(folder.path)/program\n\(program)\nEND\n")
        #expect(result.status == 0, "\(result.output)")
    }
}
