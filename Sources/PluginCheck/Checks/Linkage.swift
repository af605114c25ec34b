// SPDX-License-Identifier: BSD-2-Clause
// The plugin's file: its name, its symbols, and its instructions for the dynamic linker (rule 1 of the ABI).
import CLinux
import Glibc
import PluginAPI

extension Check {
    static let linkage = [
        Check(.linkage, "file-name", "the file is called xbb-NAME.so", need: .file) { bench throws(Failure) in
            try require(
                bench.subject.name != nil,
                "the host finds a plugin as xbb-NAME.so with NAME of a-z, 0-9 and '-': rename the file")
        },
        Check(.linkage, "exports", "xbb_plugin_v1 is the one symbol that is exported", need: .file) {
            bench throws(Failure) in
            let symbols = try SharedObject(path: bench.subject.path).symbols.filter(\.isDefined).map(\.name)
            try require(
                symbols.contains(XBB_PLUGIN_ENTRY),
                "\(XBB_PLUGIN_ENTRY)() is not exported: use XBB_PLUGIN_EXPORT, or give it default visibility")
            let others = symbols.filter { $0 != XBB_PLUGIN_ENTRY }
            try require(
                others.isEmpty,
                "it exports \(others.prefix(5).joined(separator: ", ")) too (\(others.count) in all): "
                    + "compile with -fvisibility=hidden or link with a version script")
        },
        Check(.linkage, "imports", "every undefined symbol is in a library that it names", need: .file) {
            bench throws(Failure) in
            let object = try SharedObject(path: bench.subject.path)
            bench.at("dlopen()")
            guard let library = unsafe dlopen(bench.subject.path, RTLD_LAZY | RTLD_LOCAL) else {
                throw Failure(unsafe dlerror().map { unsafe String(cString: $0) } ?? "dlopen() failed")
            }
            // With a handle, only the library and its dependencies are searched.
            let missing = object.symbols.filter { symbol in
                unsafe !symbol.isDefined && !symbol.isWeak && dlsym(library, symbol.name) == nil
            }
            try require(
                missing.isEmpty,
                "nothing that it links with has \(missing.prefix(5).map(\.name).joined(separator: ", ")): "
                    + "link with -Wl,-z,defs and name the libraries; the host exports nothing")
        },
        Check(.linkage, "relocations", "the code needs no relocation (no DT_TEXTREL)", need: .file) {
            bench throws(Failure) in
            let dynamic = try SharedObject(path: bench.subject.path).dynamic
            try require(
                !dynamic.contains { $0.tag == 22 || $0.tag == 30 && $0.value & 4 != 0 },
                "its code has relocations (DT_TEXTREL), which workers cannot make: compile with -fPIC")
        },
        Check(.linkage, "stack", "the stack is not executable", need: .file) { bench throws(Failure) in
            let stack = try SharedObject(path: bench.subject.path).segments.first { $0.type == 0x6474_e551 }
            try require(
                stack.map { $0.flags & 1 == 0 } ?? false,
                "it asks for an executable stack: link with -Wl,-z,noexecstack")
        },
    ]
}
