// SPDX-License-Identifier: BSD-2-Clause
// What each disk has of its own: a user and a control group.
import Base
import CLinux
import Glibc
import Settings
import Support
import Testing

@testable import XBBControl

@Suite("What a disk has of its own")
struct DiskRightsTests {
    private static let all = Array("         0          0 4294967295\n".utf8)

    private func address(_ device: UInt32, _ domain: UInt16 = 1) throws -> VBDAddress {
        try #require(VBDAddress(kind: "vbd", domain: domain, device: device))
    }

    @Test("each disk has another user, and the same one again") func users() throws {
        let users = try #require(WorkerUsers(70000...70399, map: Self.all))
        var taken: Set<UInt32> = []
        for device in 0..<400 as Range<UInt32> {
            let number = try #require(users.number(of: try address(device), taken: taken))
            #expect((70000...70399).contains(number))
            #expect(taken.insert(number).inserted, "nobody else has it")
        }
        #expect(users.number(of: try address(4000), taken: taken) == nil)
        let wide = try #require(WorkerUsers(1_879_048_192...1_879_113_727, map: Self.all))
        let first = wide.number(of: try address(51712), taken: [])
        #expect(wide.number(of: try address(51712), taken: []) == first)
        #expect(wide.number(of: try address(51712), taken: Set([first].compactMap { $0 })) != first)
    }

    @Test("there are none where the system has no such users") func container() {
        #expect(WorkerUsers(70000...70399, map: Array("0 100000 65536\n".utf8)) == nil)
        #expect(WorkerUsers(70000...70399, map: Array("0 100000 70399\n".utf8)) == nil)
        #expect(WorkerUsers(70000...70399, map: Array("0 100000 70400\n".utf8)) != nil)
        for text in ["", "x", "0 0", "0 0 x"] { #expect(WorkerUsers(70000...70399, map: Array(text.utf8)) == nil) }
        #expect(WorkerUsers(70000...70399, map: nil) == nil)
    }

    @Test("a range of users is two numbers") func ranges() {
        #expect(TextRule.range("64000-64999") == 64000...64999)
        for text in [
            "none", "", "-", "1-2", "999-2000", "2000-1999", "1000-4294967295", "1000-2000-3000", "+1000-2000x",
        ] {
            #expect(TextRule.range(text) == nil, "\(text)")
        }
    }

    private static let group = "/xbb-test-\(getpid())"

    private static func groups() -> DiskGroups? {
        DiskGroups(
            group, DiskGroups.Limits(SettingValues()), note: { "/tmp/xbb-test-\(getpid())-\($0.fileName).group" },
            Log(name: "test", level: .error))
    }

    /// cgroup v2 is there, and a group can be made.
    private static var canGroup: Bool {
        guard let groups = groups() else { return false }
        return access(groups.parent + "/cgroup.procs", W_OK) == 0 && rmdir(groups.parent) == 0
    }

    @Test("its processes are in a control group of the disk's own", .enabled(if: canGroup)) func groups() throws {
        let groups = try #require(Self.groups())
        defer { rmdir(groups.parent) }
        let address = try address(51712)
        defer { unlink("/tmp/xbb-test-\(getpid())-\(address.fileName).group") }
        let worker = try Program(["/bin/sleep", "60"])
        groups.add(worker.process.process, to: address)
        let found = SmallFile.contents("/proc/\(worker.process.process)/cgroup", limit: 65536) ?? []
        #expect(String(decoding: found, as: UTF8.self).contains("0::\(Self.group)/disk-vbd-1-51712\n"))
        groups.remove(address)
        #expect(access(groups.parent + "/disk-vbd-1-51712", F_OK) == 0, "it is not empty yet")
        worker.process.send(SIGKILL)
        worker.wait()
        try eventually("the group of a disk that is gone is removed") {
            groups.remove(address)
            return access(groups.parent + "/disk-vbd-1-51712", F_OK) != 0
        }
        let none = DiskGroups(
            "none", DiskGroups.Limits(SettingValues()), note: { _ in "" }, Log(name: "test", level: .error))
        #expect(none == nil)
    }

    @Test("a group that is there follows the settings, unless an administrator has written it")
    func groupLimits() throws {
        let group = "/tmp/xbb-test-\(getpid())-limits"
        mkdir(group, 0o700)
        let names = ["pids.max", "memory.max", "note"]
        defer {
            for name in names { unlink("\(group)/\(name)") }
            rmdir(group)
        }
        func write(_ text: String, _ name: String) throws {
            let file = try #require(fopen("\(group)/\(name)", "w"))
            fputs(text, file)
            fclose(file)
        }
        func value(_ name: String) -> String {
            let bytes = SmallFile.contents("\(group)/\(name)", limit: 100) ?? []
            return String(decoding: bytes, as: UTF8.self).filter { $0 != "\n" }
        }
        func limit(tasks: Int, mebibytes: Int, isNew: Bool = false) {
            var values = SettingValues()
            values[SettingsSchema.workerTasks] = tasks
            values[SettingsSchema.workerMemoryMiB] = mebibytes
            values[SettingsSchema.maxQueues] = 1
            values[SettingsSchema.memoryMiB] = 16
            values[SettingsSchema.maxIndirectSegments] = 0
            DiskGroups.limit(group, DiskGroups.Limits(values), isNew: isNew, note: "\(group)/note")
        }
        // With the 16 MiB of its queue.
        func memory(_ mebibytes: Int) -> String { "\((mebibytes + 16) << 20)" }
        for name in names.prefix(2) { try write("", name) }
        limit(tasks: 1024, mebibytes: 512, isNew: true)
        #expect(value("pids.max") == "1024" && value("memory.max") == memory(512))
        // As the kernel shows it, with a line feed.
        try write("1024\n", "pids.max")
        limit(tasks: 2048, mebibytes: 600)
        #expect(value("pids.max") == "2048" && value("memory.max") == memory(600))
        limit(tasks: 1024, mebibytes: 512)
        // The process that serves may use that.
        #expect(value("pids.max") == "2048" && value("memory.max") == memory(600))
        try write(memory(100), "memory.max")
        limit(tasks: 4096, mebibytes: 700)
        #expect(value("pids.max") == "4096" && value("memory.max") == memory(100), "an administrator's")
        for text in ["max", "", "-1"] {
            try write(text, "memory.max")
            limit(tasks: 4096, mebibytes: 800)
            #expect(value("memory.max") == text)
        }
        // Without the note nobody knows.
        unlink("\(group)/note")
        limit(tasks: 8192, mebibytes: 800)
        #expect(value("pids.max") == "4096")
        for text in ["pids.max", "pids.max 4096 1\n", "\0\n", "pids.max x\nmemory.max 99999999999999999999\n"] {
            try write(text, "note")
            limit(tasks: 8192, mebibytes: 800)
            #expect(value("pids.max") == "4096", "\(text)")
        }
    }
}
