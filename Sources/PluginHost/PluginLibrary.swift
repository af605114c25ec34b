// SPDX-License-Identifier: BSD-2-Clause
// Finds a plugin's shared library, checks who could have changed it, loads it and checks its description.
import Base
import CLinux
import Glibc
import PluginAPI

/// How strictly calls into a plugin are serialised.
public enum PluginThreadModel: Sendable, Equatable {
    /// One call at a time in the process.
    case process
    /// One call at a time for each disk.
    case device
    /// One call at a time for each queue.
    case queue

    /// The models are numbered with gaps; an unknown one is treated as the next stricter one.
    init(_ value: UInt32) {
        switch value {
        case 3000...: self = .queue
        case 2000...: self = .device
        default: self = .process
        }
    }
}

/// A loaded plugin. Never unloaded: its threads and thread-local data may outlive every use (RTLD_NODELETE).
///
/// `@unchecked Sendable`: a constant copy of the table, whose pointers are valid as long as the process.
@safe
public struct PluginLibrary: @unchecked Sendable {
    /// The plugin's own table, as far as both sides know its members; members that an older plugin lacks are zero.
    package let table: xbb_plugin
    /// The name in the file name.
    public let name: String
    /// The plugin's version text.
    public let version: String
    /// The plugin's description.
    public let summary: String
    /// Formats that it serves.
    public let formats: [String]
    /// The path that it was loaded from.
    public let path: String
    /// How calls are serialised.
    public let threadModel: PluginThreadModel

    /// The version of the ABI that it was built for, "1.0".
    public var abi: String { unsafe "\(table.abi_major).\(table.abi_minor)" }
    /// True if it can describe the content of an image.
    public var canInspect: Bool { unsafe table.inspect != nil }
    /// True if its table has extension(), which came with ABI 1.0 at the place that 1.2 added to.
    public var canExtend: Bool { unsafe table.extension != nil }
    /// True if submit() may sleep.
    public var isBlocking: Bool { unsafe table.flags & UInt32(XBB_PLUGIN_BLOCKING) != 0 }
    /// True if it has a way to read what child_open() opens: child_submit(), or child_device() of ABI 1.2.
    var canReadChildren: Bool { unsafe isBlocking || table.abi_minor >= 2 }
    /// True if its disks have no file or device behind them.
    public var hasNoFile: Bool { unsafe table.flags & UInt32(XBB_PLUGIN_NO_FD) != 0 }
    /// True if it opens sockets while it serves.
    public var isNetwork: Bool { unsafe table.flags & UInt32(XBB_PLUGIN_NETWORK) != 0 }
    /// True if it never writes.
    public var isReadOnly: Bool { unsafe table.flags & UInt32(XBB_PLUGIN_RDONLY) != 0 }

    /// The options that the plugin takes.
    public var options: [PluginOption] {
        unsafe (0..<Int(table.option_count)).compactMap { index in
            guard let options = unsafe table.options else { return nil }
            return unsafe PluginOption(unsafe options[index])
        }
    }

    /// Loads `xbb-<name>.so` from the first of the directories that has it.
    public static func load(name: String, directories: [String]) throws(OperationError) -> PluginLibrary {
        guard isValidName(name) else {
            throw OperationError(.missing, "'\(name)' is no plugin name: it takes a-z, 0-9 and '-'")
        }
        for directory in directories {
            let path = "\(directory)/xbb-\(name).so"
            if unsafe access(path, F_OK) != 0 { continue }
            try checkOwner(of: directory)
            try checkOwner(of: path)
            // If the file is a link, the target's folder must be as trustworthy.
            if let target = folder(behindLink: path) { try checkOwner(of: target) }
            return try unsafe load(name: name, path: path, host: HostTable.shared)
        }
        throw OperationError(
            .missing,
            "no plugin '\(name)': there is no xbb-\(name).so in \(directories.joined(separator: ", "))")
    }

    /// The names of the plugins in the directories, by their file names; nothing is loaded.
    public static func names(in directories: [String]) -> [String] {
        Set(directories.flatMap { DirectoryListing.names(in: $0).compactMap { name(inFile: $0) } }).sorted()
    }

    /// The name of the plugin in a file called "xbb-<name>.so"; nil for any other file name.
    package static func name(inFile file: String) -> String? {
        guard file.hasPrefix("xbb-"), file.hasSuffix(".so") else { return nil }
        let name = String(file.dropFirst(4).dropLast(3))
        return isValidName(name) ? name : nil
    }

    package static func isValidName(_ name: String) -> Bool {
        guard let first = name.utf8.first, (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(first) else { return false }
        return name.utf8.count <= 64
            && name.utf8.allSatisfy { byte in
                (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
                    || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) || byte == UInt8(ascii: "-")
            }
    }

    /// The folder of a link's target; nil if `path` is not a link.
    private static func folder(behindLink path: String) -> String? {
        var status = stat()
        guard unsafe lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFLNK,
            let resolved = unsafe realpath(path, nil)
        else { return nil }
        defer { unsafe free(resolved) }
        let target = unsafe String(cString: resolved)
        return "/" + target.split(separator: "/").dropLast().joined(separator: "/")
    }

    /// Code from here runs with our rights, so only root and our own user may be able to change it.
    private static func checkOwner(of path: String) throws(OperationError) {
        var status = stat()
        if unsafe stat(path, &status) != 0 { throw OperationError(.missing, "\(path)", .errno(errno)) }
        if status.st_uid != 0 && status.st_uid != geteuid() {
            throw OperationError(
                .untrusted, "\(path) belongs to user \(status.st_uid): plugins must belong to root (chown root)")
        }
        if status.st_mode & (S_IWGRP | S_IWOTH) != 0 {
            throw OperationError(
                .untrusted, "\(path) can be written by others than its owner: plugins must not (chmod go-w)")
        }
    }

    /// Loads the plugin `name` from the file at `path`, whoever owns it, and gives it the host's table.
    ///
    /// The entry point is called by the type that the ABI gives it; a library that lies about it could do the same harm
    /// when it is loaded.
    package static func load(
        name: String, path: String, host: UnsafePointer<xbb_host>
    ) throws(OperationError) -> PluginLibrary {
        try PluginFile.check(path)
        guard let handle = unsafe dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) else {
            throw OperationError(
                .incompatible,
                "cannot load plugin \(dynamicLinkerMessage(about: path)); install it again, or rebuild it for this system"
            )
        }
        guard let symbol = unsafe dlsym(handle, XBB_PLUGIN_ENTRY) else {
            throw OperationError(
                .incompatible,
                "\(path) is no plugin of ABI \(XBB_ABI_MAJOR): it does not export \(XBB_PLUGIN_ENTRY)(); \(Self.remedy)"
            )
        }
        typealias Entry = @convention(c) () -> UnsafePointer<xbb_plugin>?
        let entry = unsafe unsafeBitCast(symbol, to: Entry.self)
        guard let description = unsafe entry() else {
            throw faulty(path, "\(XBB_PLUGIN_ENTRY)() returned NULL in place of its description")
        }
        return try unsafe check(description, name: name, path: path, host: host)
    }

    /// Advice for a plugin and a host of different versions.
    private static let remedy = "install a build of it for this version of XBB"

    /// An error that only the plugin's author can fix.
    private static func faulty(_ path: String, _ what: String) -> OperationError {
        OperationError(
            .invalid, "plugin \(path): \(what); this is an error in the plugin, install another version of it")
    }

    /// Copies the part of the table that both sides know and checks it. The table is untrusted input.
    ///
    /// The host reads no more than `struct_size` bytes, and the strings and lists that the ABI promises to be
    /// terminated; lists are cut off at a limit.
    private static func check(
        _ description: UnsafePointer<xbb_plugin>, name: String, path: String, host: UnsafePointer<xbb_host>
    ) throws(OperationError) -> PluginLibrary {
        let size = Int(unsafe description.pointee.struct_size)
        guard let smallest = unsafe MemoryLayout<xbb_plugin>.offset(of: \.poll), size >= smallest, size <= 65536 else {
            throw OperationError(
                .incompatible,
                "plugin \(path): its description has \(size) bytes; one of ABI \(XBB_ABI_MAJOR) ends behind submit(); "
                    + Self.remedy)
        }
        var table = unsafe xbb_plugin()
        unsafe withUnsafeMutableBytes(of: &table) { copy in
            let known = min(size, copy.count)
            unsafe copy.copyMemory(from: UnsafeRawBufferPointer(start: description, count: known))
        }
        guard unsafe table.abi_major == UInt16(XBB_ABI_MAJOR) else {
            throw OperationError(
                .incompatible,
                "plugin \(path) is of plugin ABI \(unsafe table.abi_major) and this host of \(XBB_ABI_MAJOR); \(Self.remedy)"
            )
        }
        let missing = unsafe table.need_features & ~HostTable.features
        if missing != 0 {
            throw OperationError(
                .incompatible,
                "plugin \(path) needs features 0x\(String(missing, radix: 16)) that this version of XBB lacks; "
                    + Self.remedy)
        }
        let required = unsafe [
            ("open", table.open != nil), ("close", table.close != nil), ("get_info", table.get_info != nil),
            ("queue_open", table.queue_open != nil), ("queue_close", table.queue_close != nil),
            ("submit", table.submit != nil),
        ]
        for (callback, present) in required where !present {
            throw faulty(path, "it has no \(callback)(), which every plugin must have")
        }
        guard let namePointer = unsafe table.name, unsafe String(cString: namePointer) == name else {
            throw faulty(path, "it does not call itself '\(name)', the name in its file name")
        }
        guard unsafe table.req_ctx_size <= 4096 else {
            throw faulty(path, "it wants \(unsafe table.req_ctx_size) bytes for each request, and 4096 is the most")
        }
        guard unsafe table.option_count <= 256, unsafe table.option_count == 0 || table.options != nil else {
            throw faulty(path, "its list of \(unsafe table.option_count) options is missing or too long")
        }
        let formats = unsafe formatNames(table.formats)
        if formats.isEmpty { throw faulty(path, "it names no format that it serves") }
        let library = unsafe PluginLibrary(
            table: table, name: name, version: table.version.map { unsafe String(cString: $0) } ?? "",
            summary: table.description.map { unsafe String(cString: $0) } ?? "", formats: formats, path: path,
            threadModel: PluginThreadModel(table.thread_model))
        if let load = unsafe table.load {
            let result = unsafe load(host)
            if result != 0 {
                throw OperationError(
                    .incompatible,
                    "plugin \(path) cannot be used here: its load() failed: "
                        + errnoText(result < 0 && result > -4096 ? -result : EIO))
            }
        }
        return library
    }

    private static func formatNames(_ list: UnsafePointer<UnsafePointer<CChar>?>?) -> [String] {
        guard let list = unsafe list else { return [] }
        var names: [String] = []
        while names.count < 64, let entry = unsafe list[names.count] { names.append(unsafe String(cString: entry)) }
        return names
    }
}

/// The dynamic linker's message, beginning with the path of the library exactly once.
private func dynamicLinkerMessage(about path: String) -> String {
    guard let text = unsafe dlerror().map({ unsafe String(cString: $0) }) else { return "\(path): unknown error" }
    return text.hasPrefix(path) ? text : "\(path): \(text)"
}
