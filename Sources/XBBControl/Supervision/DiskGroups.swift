// SPDX-License-Identifier: BSD-2-Clause
// A control group (cgroup v2) for each disk: what it may use, and where an administrator limits and reads what it uses.
//
// The groups are below one that the service manager has delegated, or that the administrator names:
//
//   system.slice/xbbd.service/xbbd                  xbbd itself (DelegateSubgroup= of the unit)
//   system.slice/xbbd.service/disk-vbd-1-51712      worker, keeper and standby of that disk
//   system.slice/xbbd.service/earlier               processes of a version that had no groups
//
// Groups that have groups below them hold no processes (cgroups(7), "no internal processes"). So xbbd makes none where the
// service manager starts it in the delegated group itself: it could not be started there again.
import Base
import CLinux
import Glibc
public import Settings
import Support

/// The control groups of the disks. Failures are logged and change nothing else.
public final class DiskGroups {
    /// What a new group may use.
    public struct Limits: Sendable, Equatable {
        /// Threads and processes: pids.max.
        var tasks: Int
        /// Bytes of memory, with the page cache of its images: memory.max.
        var memoryBytes: Int

        /// What workers with these settings need.
        public init(_ values: SettingValues) {
            tasks = values.value(of: SettingsSchema.workerTasks)
            memoryBytes =
                values.value(of: SettingsSchema.workerMemoryMiB) << 20
                + values.queueLimit() * SettingsSchema.queueBytes(values)
        }

        /// Files of a group and what they get.
        var files: [(name: String, value: Int)] { [("pids.max", tasks), ("memory.max", memoryBytes)] }
    }

    /// The group that they are below.
    let parent: String
    private let limits: Limits
    /// Where it is noted what xbbd gave the group of a disk.
    private let note: (VBDAddress) -> String
    private let log: Log
    /// It was said that a process could not be moved.
    private var hasWarned = false

    /// The groups as the setting `control-group` wants them; nil where there are none. `note` is the file of a disk in which stands
    /// what its group was given.
    init?(_ wish: String, _ limits: Limits, note: @escaping (VBDAddress) -> String, _ log: Log) {
        guard wish != "none", let root = Self.mountPoint else { return nil }
        self.limits = limits
        self.note = note
        self.log = log
        if wish == "auto" {
            guard let own = Self.ownGroup, own.hasSuffix("/" + Self.ownName) else { return nil }
            parent = root + own.dropLast(Self.ownName.utf8.count + 1)
            guard Self.isDelegated(parent) else { return nil }
            moveEarlier()
        } else {
            parent = root + wish
            unsafe mkdir(parent, 0o755)
            enable(above: wish, root)
        }
        let missing = Self.controllers.filter { !Self.write("+\($0)", to: parent + "/cgroup.subtree_control") }
        log.info(
            "each disk has a control group below \(parent)"
                + (missing.isEmpty ? "" : "; there without: \(missing.joined(separator: ", "))"))
    }

    private static let ownName = "xbbd"
    private static let controllers = ["memory", "pids", "io"]

    private func group(_ address: VBDAddress) -> String { "\(parent)/disk-\(address.fileName)" }

    /// Puts a process of a disk, and what it starts, into the disk's group, which has the limits of the settings then.
    func add(_ process: Int32, to address: VBDAddress) {
        let group = group(address)
        let isNew = unsafe mkdir(group, 0o755) == 0
        Self.limit(group, limits, isNew: isNew, note: note(address))
        if Self.write("\(process)", to: group + "/cgroup.procs") || hasWarned { return }
        hasWarned = true
        log.warning("process \(process) cannot be moved to \(group): \(errnoText(errno))")
    }

    /// Gives a group the limits of the settings. One that is there gets larger ones, if it has what xbbd gave it: what an administrator
    /// wrote stays. It gets no smaller ones: the process that serves may use what it had, and what it offered to its guest, until
    /// the disk is detached.
    static func limit(_ group: String, _ limits: Limits, isNew: Bool, note: String) {
        func number(_ path: String) -> Int? {
            guard let bytes = SmallFile.contents(path, limit: 4096) else { return nil }
            return Int(String(decoding: bytes, as: UTF8.self).split(separator: "\n").first ?? "")
        }
        var given: [String: Int] = [:]
        if !isNew {
            let lines = String(decoding: SmallFile.contents(note, limit: 4096) ?? [], as: UTF8.self)
            for words in lines.split(separator: "\n").map({ $0.split(separator: " ") }) where words.count == 2 {
                given[String(words[0])] = Int(words[1])
            }
        }
        var isChanged = isNew
        for (name, value) in limits.files {
            if !isNew {
                guard let before = given[name], before < value, number("\(group)/\(name)") == before else { continue }
            }
            _ = write("\(value)", to: "\(group)/\(name)")
            given[name] = value
            isChanged = true
        }
        if !isChanged { return }
        // Where there is no room for it, the limits stay as they are.
        let text = limits.files.map { "\($0.name) \(given[$0.name] ?? 0)\n" }.joined()
        let raw = unsafe clinux_open(note, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0o600)
        if raw < 0 { return }
        _ = write(text, to: Descriptor(owning: raw))
    }

    /// Removes the group of a disk that is gone, if its processes are, too.
    func remove(_ address: VBDAddress) { unsafe rmdir(group(address)) }

    /// Processes that stand in the group itself keep its groups from having controllers.
    private func moveEarlier() {
        let processes = SmallFile.contents(parent + "/cgroup.procs", limit: 1 << 20) ?? []
        let numbers = String(decoding: processes, as: UTF8.self).split(separator: "\n")
        if numbers.isEmpty { return }
        unsafe mkdir(parent + "/earlier", 0o755)
        for number in numbers { _ = Self.write(String(number), to: parent + "/earlier/cgroup.procs") }
    }

    /// What a group is to have must be had by all above it.
    private func enable(above wish: String, _ root: String) {
        var path = root
        for name in wish.split(separator: "/") {
            for controller in Self.controllers {
                _ = Self.write("+\(controller)", to: path + "/cgroup.subtree_control")
            }
            path += "/" + name
        }
    }

    private static func write(_ text: String, to path: String) -> Bool {
        let raw = unsafe clinux_open(path, O_WRONLY | O_CLOEXEC, 0)
        return raw >= 0 && write(text, to: Descriptor(owning: raw))
    }

    private static func write(_ text: String, to file: borrowing Descriptor) -> Bool {
        let bytes = Array(text.utf8)
        return unsafe bytes.withUnsafeBytes { unsafe Glibc.write(file.raw, $0.baseAddress, $0.count) } == bytes.count
    }

    // MARK: Where they are

    /// Where cgroup v2 is mounted (proc_pid_mountinfo(5)); nil where it is not.
    private static var mountPoint: String? {
        let text = SmallFile.contents("/proc/self/mountinfo", limit: 1 << 20) ?? []
        for line in String(decoding: text, as: UTF8.self).split(separator: "\n") {
            let words = line.split(separator: " ")
            guard let dash = words.firstIndex(of: "-"), words.count > dash + 1, words[dash + 1] == "cgroup2" else {
                continue
            }
            return String(words[4])
        }
        return nil
    }

    /// This process's group, "/system.slice/xbbd.service/xbbd".
    private static var ownGroup: String? {
        let text = SmallFile.contents("/proc/self/cgroup", limit: 65536) ?? []
        let lines = String(decoding: text, as: UTF8.self).split(separator: "\n")
        return lines.first { $0.hasPrefix("0::/") }.map { String($0.dropFirst(3)) }
    }

    /// The service manager leaves what is below the group to others (systemd's mark on delegated groups).
    private static func isDelegated(_ path: String) -> Bool {
        let marks: [String] = ["trusted.delegate", "user.delegate"]
        return marks.contains { mark in unsafe clinux_has_mark(path, mark) == 1 }
    }
}
