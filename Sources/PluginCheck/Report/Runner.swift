// SPDX-License-Identifier: BSD-2-Clause
// Runs each check in a process of its own: if a plugin crashes, hangs or exits, only that check is lost.
import PluginHost
import Base
import CLinux
import Glibc
import Support

/// Runs checks of one plugin.
package struct Runner {
    /// This program.
    package var program = "/proc/self/exe"
    package var subject: Subject
    /// The image or block device that the user named; regular files are copied for each check.
    package var image: String?
    /// The longest time for a check, in seconds.
    package var timeLimit = 120
    /// The address space of a check, in MiB.
    package var memoryLimit = 4096
    /// Passes on what the plugin prints.
    package var isVerbose = false
    /// The plugin's description, once known.
    private var description: JSON?
    private var cannotLoad: String?
    private var cannotOpen: String?
    /// What of the command line does not fit the plugin: nothing was checked then.
    package private(set) var misuse: String?

    package init(_ subject: Subject) { self.subject = subject }

    /// Runs the checks in order and reports each result.
    package mutating func run(_ checks: [Check], telling tell: (CheckResult) -> Void) -> [CheckResult] {
        var results: [CheckResult] = []
        if let first = Check.all.first(where: { $0.identifier == "table.accepted" }),
            checks.contains(where: { $0.need != .file })
        {
            // This check finds out what the others need.
            let result = make(first)
            if case .failed(let why) = result.outcome { cannotLoad = why }
            adoptLocations()
            if misuse != nil { return [] }
        }
        for check in checks {
            let started = clinux_monotonic_ns()
            var result = attempt(check)
            result.seconds = Double(clinux_monotonic_ns() - started) / 1e9
            if check.identifier == "open.good", case .failed = result.outcome { cannotOpen = "open.good failed" }
            results.append(result)
            tell(result)
        }
        return results
    }

    /// Takes locations as they may stand in a disk's target, with the format before them: "rbd:pool/image".
    private mutating func adoptLocations() {
        guard !subject.locations.isEmpty, description != nil else { return }
        if needsFile {
            misuse = "--location is for plugins without files, and this one has its disks in files: give --image FILE"
            return
        }
        guard let format else { return }
        subject.locations = subject.locations.map { location in
            let isTarget = location.hasPrefix("\(format):") && !location.hasPrefix("\(format)://")
            return isTarget ? String(location.dropFirst(format.count + 1)) : location
        }
        if Set(subject.locations).count < subject.locations.count {
            misuse = "--location \(subject.locations[0]) is given twice: the second one is another disk"
        }
    }

    private mutating func attempt(_ check: Check) -> CheckResult {
        let isFirst = check.identifier == "table.accepted"
        if check.need != .file, !isFirst, cannotLoad != nil {
            return CheckResult(check: check, outcome: .skipped("not checked: the plugin cannot be loaded"))
        }
        if check.need == .disk, let cannotOpen {
            return CheckResult(check: check, outcome: .skipped("not checked: \(cannotOpen)"))
        }
        return make(check)
    }

    private var needsFile: Bool { description?["needs_file"] != .bool(false) }
    private var format: String? { subject.format ?? description?["formats"]?.elements.first?.string }

    private mutating func make(_ check: Check) -> CheckResult {
        var template = Array("\(getenvText("TMPDIR") ?? "/tmp")/xbb-check-XXXXXX".utf8CString)
        guard let made = unsafe mkdtemp(&template) else {
            return CheckResult(check: check, outcome: .failed("cannot make a folder for it in TMPDIR: error \(errno)"))
        }
        let folder = unsafe String(cString: made)
        defer { remove(folder) }
        var subject = subject
        subject.folder = folder
        do throws(Failure) {
            if check.need != .file { subject.image = try scratchImage(in: folder, required: check.need == .disk) }
        } catch {
            let outcome: CheckResult.Outcome = error.isSkip ? .skipped(error.description) : .failed(error.description)
            return CheckResult(check: check, outcome: outcome)
        }
        return spawn(check, subject)
    }

    /// The image for one check: a copy, an empty disk for raw, or the block device itself.
    private func scratchImage(in folder: String, required: Bool) throws(Failure) -> String? {
        if let image {
            var status = stat()
            guard unsafe stat(image, &status) == 0 else { throw Failure("\(image): error \(errno)") }
            if status.st_mode & S_IFMT == S_IFBLK { return image }
            try copySparse(image, to: "\(folder)/image")
            return "\(folder)/image"
        }
        guard description != nil, needsFile else { return nil }
        guard format == "raw" else {
            if required { throw .skip("it needs an image of format \(format ?? "?"): give --image FILE") }
            return nil
        }
        try write([], to: "\(folder)/image")
        if unsafe truncate("\(folder)/image", 16 << 20) != 0 { throw Failure("no room for an image in \(folder)") }
        return "\(folder)/image"
    }

    private func arguments(_ check: Check, _ subject: Subject) -> [String] {
        var words = ["xbb-plugin-check", "--run-check", check.identifier, "--folder", subject.folder]
        words += ["--memory-limit", "\(memoryLimit)"]
        if let image = subject.image { words += ["--image", image] }
        for location in subject.locations { words += ["--location", location] }
        if let format = subject.format { words += ["--format", format] }
        if let reference = subject.reference { words += ["--reference", reference] }
        if subject.isQuick { words.append("--quick") }
        if isVerbose { words.append("--verbose") }
        words += [subject.path, "--"]
        return words + subject.options.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }
    }

    private mutating func spawn(_ check: Check, _ subject: Subject) -> CheckResult {
        var ends: [Int32] = [-1, -1]
        guard unsafe pipe(&ends) == 0 else {
            return CheckResult(check: check, outcome: .failed("pipe: error \(errno)"))
        }
        let null = unsafe clinux_open("/dev/null", O_WRONLY | O_CLOEXEC, 0)
        let (code, process) = startProgram(
            program, arguments(check, subject), output: isVerbose ? -1 : null, kept: ends[1])
        close(null)
        close(ends[1])
        defer { close(ends[0]) }
        guard code == 0 else {
            return CheckResult(check: check, outcome: .failed("cannot start the check: error \(code)"))
        }
        var reader = ReportReader(descriptor: ends[0])
        let end = reader.follow(process, seconds: timeLimit)
        if let fact = reader.fact { description = fact }
        var result = CheckResult(check: check, outcome: reader.outcome(end, seconds: timeLimit))
        result.notes = reader.notes
        return result
    }
}

/// Reads the report of a check's process, line by line.
private struct ReportReader {
    /// How the process ended.
    enum End {
        case exited(Int32)
        case signalled(Int32)
        case overtime
    }

    let descriptor: Int32
    private var pending: [UInt8] = []
    private var place = ""
    private var verdict: CheckResult.Outcome?
    private(set) var notes: [String] = []
    private(set) var fact: JSON?

    init(descriptor: Int32) {
        self.descriptor = descriptor
        _ = clinux_fcntl_int(descriptor, F_SETFL, O_NONBLOCK)
    }

    /// Reads until the process ends or its time is over; then kills what is left of it.
    mutating func follow(_ process: pid_t, seconds: Int) -> End {
        let watched = clinux_pidfd_open(process)
        defer { close(watched) }
        let deadline = clinux_monotonic_ns() + UInt64(seconds) * 1_000_000_000
        var (exit, signal, dumped) = (Int32(0), Int32(0), Int32(0))
        while true {
            let now = clinux_monotonic_ns()
            var polls = [
                pollfd(fd: watched, events: Int16(POLLIN), revents: 0),
                pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0),
            ]
            let wait = now < deadline ? Int32(min((deadline - now) / 1_000_000 + 1, 1000)) : 0
            _ = unsafe poll(&polls, 2, wait)
            let isOpen = take()
            if unsafe clinux_pidfd_wait(watched, &exit, &signal, &dumped) == 1 {
                kill(-process, SIGKILL)
                _ = take()
                return signal != 0 ? .signalled(signal) : .exited(exit)
            }
            if now >= deadline {
                kill(-process, SIGKILL)
                while unsafe clinux_pidfd_wait(watched, &exit, &signal, &dumped) == 0 { usleep(1000) }
                return .overtime
            }
            // The plugin may have closed the descriptor: wait for the end without it.
            if !isOpen { usleep(1000) }
        }
    }

    /// Returns false at the end of the report.
    private mutating func take() -> Bool {
        var chunk = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = unsafe read(descriptor, &chunk, chunk.count)
            if count == 0 { return false }
            if count < 0 { return true }
            pending += chunk[..<count]
            while let end = pending.firstIndex(of: 10) {
                take(line: String(decoding: pending[..<end], as: UTF8.self))
                pending.removeSubrange(...end)
            }
        }
    }

    private mutating func take(line: String) {
        let parts = line.split(separator: " ", maxSplits: 1, omittingEmptySubsequences: false)
        let text = parts.count > 1 ? String(parts[1]) : ""
        switch parts[0] {
        case "at": place = text
        case "note": notes.append(text)
        case "fact": fact = try? JSON(parsing: text)
        // The first verdict counts.
        case "pass": verdict = verdict ?? .passed
        case "skip": verdict = verdict ?? .skipped(text)
        case "fail": verdict = verdict ?? .failed(text)
        default: break
        }
    }

    func outcome(_ end: End, seconds: Int) -> CheckResult.Outcome {
        let place = place.isEmpty ? "" : " (during \(place))"
        switch (end, verdict) {
        case (.overtime, _):
            return .failed(
                "it hangs, or its storage is slow: the check did not end within \(seconds) s (--time-limit)\(place)")
        case (.exited(0), .some(let verdict)): return verdict
        case (_, .some(.failed(let why))): return .failed("\(why)\(place)")
        case (.signalled(let signal), _): return .failed("the process was ended by signal \(signal)\(place)")
        case (.exited(let status), _):
            return .failed(
                "the process ended with exit status \(status)\(place): a plugin never calls exit() and closes no "
                    + "descriptor that is not its own")
        }
    }
}

private func getenvText(_ name: String) -> String? { unsafe getenv(name).map { unsafe String(cString: $0) } }

/// Removes a folder that contains only plain files.
private func remove(_ folder: String) {
    for name in DirectoryListing.names(in: folder) { unsafe unlink("\(folder)/\(name)") }
    unsafe rmdir(folder)
}

/// Copies a file, keeping its holes.
func copySparse(_ source: String, to destination: String) throws(Failure) {
    let (from, to) = unsafe (
        clinux_open(source, O_RDONLY | O_CLOEXEC, 0),
        clinux_open(destination, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    )
    defer {
        close(from)
        close(to)
    }
    let length = lseek(from, 0, SEEK_END)
    guard from >= 0, to >= 0, length >= 0, ftruncate(to, length) == 0 else {
        throw Failure("cannot copy \(source) to \(destination): error \(errno)")
    }
    var chunk = [UInt8](repeating: 0, count: 1 << 20)
    var place = lseek(from, 0, clinux_SEEK_DATA)
    while place >= 0, place < length {
        let end = lseek(from, place, clinux_SEEK_HOLE)
        while place < end {
            let count = unsafe pread(from, &chunk, min(chunk.count, end - place), place)
            guard count > 0, unsafe pwrite(to, chunk, count, place) == count else {
                throw Failure("cannot copy \(source) to \(destination): error \(errno)")
            }
            place += count
        }
        place = lseek(from, place, clinux_SEEK_DATA)
    }
}
