// SPDX-License-Identifier: BSD-2-Clause
// The environment of a check in its own process: the plugin, its image, and the pipe to the parent.
import PluginHost
import Base
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import Synchronization

/// What is checked, and how.
package struct Subject: Sendable {
    /// The file of the plugin.
    package var path: String
    /// Values for its options.
    package var options: [String: String] = [:]
    /// The format to serve; nil for its first one.
    package var format: String?
    /// The image that the check may write to; nil if the plugin has none.
    package var image: String?
    /// Where the disks of a plugin without files are: that of the checks, and a second one.
    package var locations: [String] = []
    /// A file with the expected content of the image.
    package var reference: String?
    /// A folder that is removed after the check.
    package var folder: String = "/tmp"
    /// Fewer rounds.
    package var isQuick = false

    package init(path: String) { self.path = path }

    /// The name in the file name "xbb-NAME.so".
    var name: String? {
        PluginLibrary.name(inFile: path.split(separator: "/").last.map(String.init) ?? "")
    }
}

/// The pipe to the parent, written by checks, by the harness and by signal handlers.
private let reportDescriptor = Atomic<Int32>(-1)

/// Writes a line. Words: "at", the current step; "note", a measurement; "fact", JSON; "fail", "skip", "pass".
private func report(_ word: String, _ text: String) {
    var line = "\(word) \(text.split(whereSeparator: \.isNewline).joined(separator: " "))\n"
    line.withUTF8 { bytes in _ = unsafe write(reportDescriptor.load(ordering: .relaxed), bytes.baseAddress, bytes.count)
    }
}

/// The environment of one check.
@safe
package final class Bench {
    package let subject: Subject
    private var loaded: Plugin?
    /// Kept until the process ends, so that objects of a failed check are not closed implicitly.
    private var kept: [AnyObject] = []

    private init(_ subject: Subject) { self.subject = subject }

    /// Runs the check and ends the process; the outcome is written to `descriptor`.
    package static func run(
        _ check: Check, _ subject: Subject, reportingTo descriptor: Int32, memoryLimit: Int, isVerbose: Bool
    ) -> Never {
        var limit = rlimit(rlim_cur: UInt(memoryLimit) << 20, rlim_max: UInt(memoryLimit) << 20)
        _ = unsafe setrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit)
        limit = rlimit(rlim_cur: 0, rlim_max: 0)
        _ = unsafe setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &limit)
        if isVerbose { harness_log_aloud() } else { dup2(1, 2) }
        // A high number, out of the way of descriptors that the plugin opens, or closes by number.
        let kept = clinux_fcntl_int(descriptor, F_DUPFD_CLOEXEC, 200)
        Glibc.close(descriptor)
        reportDescriptor.store(kept, ordering: .relaxed)
        harness_name_faults(kept)
        unsafe harness_on_breach { text in
            PluginCheck.report("fail", unsafe text.map { unsafe String(cString: $0) } ?? "")
            _exit(3)
        }
        let bench = Bench(subject)
        do throws(Failure) {
            try check.body(bench)
            PluginCheck.report("pass", "")
        } catch {
            bench.tell(error)
        }
        _exit(0)
    }

    /// Reports the current step, in case it is the last one.
    func at(_ what: String) { PluginCheck.report("at", what) }
    /// Reports the outcome if the process is to end in another way than at the end of its check.
    func tell(_ failure: Failure) { PluginCheck.report(failure.isSkip ? "skip" : "fail", failure.description) }
    /// Reports a measurement.
    func note(_ text: String) { PluginCheck.report("note", text) }
    /// Reports what the parent bases decisions on.
    func fact(_ json: String) { PluginCheck.report("fact", json) }
    /// The descriptor that the parent reads.
    var descriptor: Int32 { reportDescriptor.load(ordering: .relaxed) }

    /// The plugin, loaded.
    var plugin: Plugin {
        get throws(Failure) {
            if let loaded { return loaded }
            guard let name = subject.name else { throw Failure("the file is not called xbb-NAME.so") }
            at("load()")
            let plugin = try Plugin(name: name, path: subject.path)
            loaded = plugin
            return plugin
        }
    }

    /// Opens the disk; read-only if the plugin cannot write.
    func disk(
        _ options: [String: String] = [:], image: String? = nil, location: String? = nil, readOnly: Bool = false,
        isAfterDeath: Bool = false, started: Bool = true
    ) throws(Failure) -> Disk {
        let disk = try unkeptDisk(
            options, image: image, location: location, readOnly: readOnly, isAfterDeath: isAfterDeath, started: started)
        kept.append(disk)
        return disk
    }

    /// Like `disk()`, for a check that closes the disk itself.
    func unkeptDisk(
        _ options: [String: String] = [:], image: String? = nil, location: String? = nil, readOnly: Bool = false,
        isAfterDeath: Bool = false, started: Bool = true
    ) throws(Failure) -> Disk {
        let plugin = try plugin
        at("open()")
        let location = location ?? subject.locations.first
        do throws(Failure) {
            return try Disk(
                plugin, plugin.library.hasNoFile ? nil : image ?? subject.image,
                readOnly: readOnly || plugin.library.isReadOnly, subject.options.merging(options) { $1 },
                format: subject.format, location: location, isAfterDeath: isAfterDeath, started: started)
        } catch {
            guard error.isRefusal, location == nil, plugin.library.hasNoFile else { throw error }
            throw error.with("--location TEXT says where its disk is")
        }
    }

    /// The answer of `get_info()`, checked as the host does it.
    func info(_ disk: Disk) throws(Failure) -> DeviceInfo {
        at("get_info()")
        do throws(OperationError) {
            return try DeviceInfo(validating: disk.info)
        } catch {
            throw Failure("get_info(): \(error)")
        }
    }

    /// Opens a queue for guarded requests.
    func queue(_ disk: Disk, index: UInt32 = 0, depth: UInt32 = 32) throws(Failure) -> Queue {
        at("queue_open()")
        let queue = try Queue(disk, index: index, depth: depth, guarded: true)
        kept.append(queue)
        return queue
    }

    /// Performs a request that must end with one of the statuses.
    func perform(_ request: Request, on queue: Queue, expecting statuses: [Int32] = [0]) throws(Failure) {
        at("a \(request.name)")
        let status = queue.perform(request)
        if status == 1 { throw Failure("submit() accepts nothing with nothing in flight, 100 times") }
        if status == 2 { throw Failure("a \(request.name) was accepted and never completed") }
        if !statuses.contains(status) {
            let expected = statuses.map { $0 == 0 ? "0" : errorName($0) }.joined(separator: " or ")
            throw Failure("a \(request.name) gave \(errorName(status)), and \(expected) was expected")
        }
    }

    /// Closes the queues, then the disk.
    func close(_ disk: Disk, _ queues: [Queue]) {
        at("queue_close()")
        for queue in queues { queue.close() }
        at("close()")
        disk.close()
    }
}

/// "-5 (Input/output error)".
func errorName(_ status: Int32) -> String {
    status < 0 && status > -4096 ? "\(status) (\(unsafe String(cString: strerror(-status))))" : "\(status)"
}
