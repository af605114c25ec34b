// SPDX-License-Identifier: BSD-2-Clause
// Plugins that cannot be used: each is refused with one line that says which, why and what helps, and no other disk
// notices.
import Blkfront
import Foundation
import Testing

extension EndToEnd {
    @Suite struct BrokenPluginTests {
        /// How broken.c is broken, and what is said of it.
        struct Flaw: CustomTestStringConvertible, Sendable {
            let macro: String
            let text: String

            init(_ macro: String, _ text: String) {
                self.macro = macro
                self.text = text
            }

            var testDescription: String { macro }
        }

        private static let source = "\(packageDirectory)/Tests/BrokenPlugin/broken.c"
        private static let faulty = "this is an error in the plugin, install another version of it"
        private static let otherVersion = "install a build of it for this version of XBB"

        private func expectRefusal(of flaw: Flaw) throws {
            try expectRefusal(flaw.text) { lab in
                try lab.compilePlugin("broken", from: Self.source, options: ["-DNAME=broken", flaw.macro])
            }
        }

        /// Attaches a disk of plugin "broken" beside one that works, and looks at what is said of it.
        private func expectRefusal(_ text: String, _ prepare: (Lab) throws -> Void) throws {
            let lab = try Lab()
            let neighbour = try lab.attach(51728)
            let device = try neighbour.connect()
            try prepare(lab)
            let disk = try lab.attach(51712, .plugin("broken"))
            try eventually("an answer; log: \(disk.log)") { try disk.key("hotplug-status") != nil }
            #expect(try disk.key("hotplug-status") == "error", "\(disk.log)")
            let error = try #require(try disk.key("hotplug-error"))
            #expect(error.has(text), "\(error)")
            // xl prints it after its own prefix: one line, and the plugin named once.
            #expect(!error.has("\n") && error.utf8.count < 500)
            #expect(error.components(separatedBy: "xbb-broken.so").count <= 2, "\(error)")
            #expect(error.has("broken"), "\(error)")
            #expect(try disk.error() == error)
            #expect(disk.log.split(separator: "\n").filter { String($0).has(text) }.count == 1, "\(disk.log)")
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            #expect(try neighbour.load(device) { $0.count = 100 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test(arguments: [
            Flaw("-DENTRY=xbb_plugin_v2", "does not export xbb_plugin_v1(); \(otherVersion)"),
            Flaw("-DCHANGE=return NULL", "xbb_plugin_v1() returned NULL in place of its description; \(faulty)"),
            Flaw("-DMAJOR=2", "is of plugin ABI 2 and this host of 1; \(otherVersion)"),
            Flaw("-DMAJOR=0", "is of plugin ABI 0 and this host of 1; \(otherVersion)"),
            Flaw("-DSTRUCT_SIZE=0", "its description has 0 bytes; one of ABI 1 ends behind submit(); \(otherVersion)"),
            Flaw("-DSTRUCT_SIZE=64", "its description has 64 bytes"),
            Flaw("-DSTRUCT_SIZE=offsetof(struct xbb_plugin, submit)", "ends behind submit()"),
            Flaw("-DSTRUCT_SIZE=65537", "its description has 65537 bytes"),
            Flaw("-DSTRUCT_SIZE=0xffffffff", "its description has 4294967295 bytes"),
            Flaw("-DCHANGE=table->open = NULL", "it has no open(), which every plugin must have; \(faulty)"),
            Flaw("-DCHANGE=table->close = NULL", "it has no close()"),
            Flaw("-DCHANGE=table->get_info = NULL", "it has no get_info()"),
            Flaw("-DCHANGE=table->queue_open = NULL", "it has no queue_open()"),
            Flaw("-DCHANGE=table->queue_close = NULL", "it has no queue_close()"),
            Flaw("-DCHANGE=table->submit = NULL", "it has no submit()"),
            Flaw("-DCHANGE=table->name = NULL", "it does not call itself 'broken'"),
            Flaw("-DCHANGE=table->name = \"brokem\"", "it does not call itself 'broken'"),
            Flaw("-DCHANGE=table->formats = NULL", "it names no format that it serves"),
            Flaw("-DCHANGE=static const char *const none[] = {NULL}; table->formats = none", "it names no format"),
            Flaw("-DCHANGE=static const char *const other[] = {\"x\", NULL}; table->formats = other", "only: x"),
            Flaw("-DCHANGE=table->option_count = 3", "its list of 3 options is missing or too long"),
            Flaw("-DCHANGE=table->option_count = 0xffffffff", "its list of 4294967295 options"),
            Flaw("-DCHANGE=table->req_ctx_size = 4097", "it wants 4097 bytes for each request"),
            Flaw("-DCHANGE=table->need_features = 1ull << 63", "needs features 0x8000000000000000"),
            Flaw("-DLOAD_RESULT=-ENOSYS", "its load() failed: Function not implemented"),
            Flaw("-DLOAD_RESULT=7", "its load() failed: Input/output error"),
        ])
        func aTableThatIsWrong(_ flaw: Flaw) throws {
            try expectRefusal(of: flaw)
        }

        @Test(arguments: [
            Flaw("-DINFO=info->size = 0", "the disk has 0 bytes"),
            Flaw("-DINFO=info->size = 1000", "a size of 1000 bytes, not whole blocks of 512"),
            Flaw("-DINFO=info->size = ~0ull - 511", "not whole blocks"),
            Flaw("-DINFO=info->logical_block = 1000", "logical blocks of 1000 bytes"),
            Flaw("-DINFO=info->logical_block = 1u << 31", "logical blocks of 2147483648 bytes"),
            Flaw("-DINFO=info->mem_align = 3", "buffers aligned to 3 bytes"),
            Flaw("-DINFO=info->physical_block = 7", "physical blocks of 7 bytes"),
            Flaw("-DINFO=info->max_transfer = 100", "max_transfer 100, less than one block"),
            Flaw("-DCAPS=XBB_CAP_WRITE | XBB_CAP_NEEDS_MEM_MAP", "it needs mem_map(), and has none"),
            Flaw("-DCAPS=XBB_CAP_DISCARD_SECURE", "reports a kind of discard, and that it cannot discard"),
            Flaw("-DCAPS=XBB_CAP_DISCARD_ZEROES", "reports a kind of discard, and that it cannot discard"),
            Flaw("-DINFO=return -EIO", "gives no information: Input/output error"),
        ])
        func aDiskThatIsWrong(_ flaw: Flaw) throws {
            try expectRefusal(of: flaw)
        }

        @Test func whatIsNoLibrary() throws {
            func path(_ lab: Lab) -> String { "\(lab.plugins)/xbb-broken.so" }
            func make(_ lab: Lab, _ bytes: Data) {
                _ = FileManager.default.createFile(atPath: path(lab), contents: bytes)
            }
            let library = try Data(contentsOf: URL(fileURLWithPath: "\(buildDirectory)/libxbb-null.so"))
            let remedy = "install it again"
            try expectRefusal("it is no shared library; \(remedy)") { make($0, Data()) }
            try expectRefusal("it is no shared library; \(remedy)") { make($0, Data("#!/bin/sh\n".utf8) + library) }
            // Copied in part: the dynamic linker would map what is not there.
            for length in [40, 64, 4096] {
                try expectRefusal(length == 40 ? "no shared library" : "it is cut off") {
                    make($0, library.prefix(length))
                }
            }
            // e_machine of another processor.
            try expectRefusal(remedy) { make($0, library.prefix(18) + Data([0xf3, 0x00]) + library.dropFirst(20)) }
            try expectRefusal(remedy) {
                try FileManager.default.copyItem(atPath: "/usr/bin/env", toPath: path($0))
            }
            try expectRefusal(remedy) {
                try FileManager.default.createDirectory(atPath: path($0), withIntermediateDirectories: false)
            }
        }

        @Test func whatIsNotComplete() throws {
            try expectRefusal("undefined symbol: no_such_function; install it again, or rebuild") { lab in
                try lab.compilePlugin("broken", from: Self.source, options: ["-DNAME=broken", "-DUNDEFINED"])
            }
            try expectRefusal("libghost.so: cannot open shared object file") { lab in
                let ghost = "\(lab.directory)/libghost.so"
                try LibxlLab.shell(
                    "echo 'int no_such_function(void) { return 0; }' | gcc -shared -fPIC -x c - -o \(ghost)")
                try lab.compilePlugin(
                    "broken", from: Self.source,
                    options: ["-DNAME=broken", "-DUNDEFINED", "-L\(lab.directory)", "-Wl,--no-as-needed", "-lghost"])
                unlink(ghost)
            }
        }

        @Test func whatOthersCanChange() throws {
            func compile(_ lab: Lab) throws {
                try lab.compilePlugin("broken", from: Self.source, options: ["-DNAME=broken"])
            }
            let writable = "can be written by others than its owner: plugins must not (chmod go-w)"
            let stranger = "belongs to user 65534: plugins must belong to root (chown root)"
            for mode in [0o775, 0o757, 0o777, 0o1777] as [mode_t] {
                try expectRefusal("xbb-broken.so \(writable)") {
                    try compile($0)
                    chmod("\($0.plugins)/xbb-broken.so", mode)
                }
            }
            try expectRefusal("xbb-broken.so \(stranger)") {
                try compile($0)
                chown("\($0.plugins)/xbb-broken.so", 65534, 0)
            }
            // A link in a good folder to a good file in a bad one.
            for (mode, owner, text) in [(0o777, 0, writable), (0o755, 65534, stranger)] as [(mode_t, uid_t, String)] {
                try expectRefusal("broken-folder \(text)") {
                    try compile($0)
                    let folder = "\($0.directory)/broken-folder"
                    mkdir(folder, 0o755)
                    rename("\($0.plugins)/xbb-broken.so", "\(folder)/x.so")
                    symlink("\(folder)/x.so", "\($0.plugins)/xbb-broken.so")
                    chmod(folder, mode)
                    chown(folder, owner, 0)
                }
            }
            try expectRefusal("no plugin serves format 'broken'") {
                symlink("/nonexistent/xbb-broken.so", "\($0.plugins)/xbb-broken.so")
            }
        }

        /// What a newer plugin may have: a longer description, a later minor version, bits that this host does not know,
        /// a stricter or unknown thread model.
        @Test(arguments: [
            "-DSTRUCT_SIZE=sizeof(struct xbb_plugin) + 512", "-DSTRUCT_SIZE=65536",
            "-DSTRUCT_SIZE=offsetof(struct xbb_plugin, poll)", "-DCAPS=XBB_CAP_WRITE | ~0x3ffull",
            "-DCHANGE=table->flags |= 0xfffffff0", "-DCHANGE=table->thread_model = 2500",
            "-DCHANGE=table->thread_model = 0", "-DINFO=info->max_queues = 0xffffffff",
            "-DINFO=info->queue_depth = 1", "-DINFO=info->max_iov = 1",
        ])
        func whatIsNewerIsServed(_ macro: String) throws {
            let lab = try Lab()
            try lab.compilePlugin("broken", from: Self.source, options: ["-DNAME=broken", macro])
            let disk = try lab.attach(51712, .plugin("broken"))
            let device = try disk.connect()
            let report = try disk.load(device) { $0.count = 200 }
            #expect(report.isGood, "\(report.text)")
            try device.close()
            try lab.finish()
        }
    }
}
