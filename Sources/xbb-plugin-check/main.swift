// SPDX-License-Identifier: BSD-2-Clause
// xbb-plugin-check: checks whether a storage plugin conforms to the ABI, and tells what to fix.
import Glibc
import PluginCheck
import Support

let usage = """
    usage: xbb-plugin-check [OPTION]... FILE [-- NAME=VALUE...]
           xbb-plugin-check --list

    Checks the storage plugin FILE, called xbb-NAME.so, against the plugin ABI of XBB. NAME=VALUE are its options.

      --quick              fewer rounds
      --only NAME          only these checks: a group, or GROUP.CHECK; may be given more than once
      --skip NAME          without these
      --format FORMAT      the format to serve; without it the first one of the plugin
      --image FILE         an image of it. A regular file is copied for each check
      --location TEXT      where the disk of a plugin without files is: nbd://host/export. Its content is lost. Given
                           twice, the second one is another disk
      --overwrite          --image may be a block device: its content is lost
      --reference FILE     what the image must read as, byte for byte
      --tap                print the Test Anything Protocol, version 13
      --json               print one JSON object
      --junit FILE         write a JUnit file too
      --time-limit N       seconds for each check (120)
      --memory-limit N     MiB of address space for each check (4096)
      --verbose            let through what the plugin prints, and print what it logs
      --list               name the checks and exit
      --help               this text
      --version            the version

    Exit status: 0 nothing is wrong, 1 a check failed, 2 wrong usage, 77 there was nothing to check.

    """

func fail(_ text: String) -> Never {
    let line = "xbb-plugin-check: \(text)\nTry 'xbb-plugin-check --help'.\n"
    _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
    exit(2)
}

/// The parsed command line.
struct CommandLineOptions {
    enum Output { case lines, tap, json }
    var output = Output.lines
    var junit: String?
    var only: [String] = []
    var skip: [String] = []
    var overwrites = false
    var runner = Runner(Subject(path: ""))
    /// Set in the process that runs one check.
    var check: String?
}

func number(_ text: String, _ name: String) -> Int {
    guard let value = Int(text), (1...1 << 30).contains(value) else {
        fail("\(name) \(text): expected a number from 1")
    }
    return value
}

/// A check may change its working directory.
func absolute(_ path: String) -> String {
    guard !path.hasPrefix("/"), let folder = unsafe getcwd(nil, 0) else { return path }
    defer { unsafe free(folder) }
    return "\(unsafe String(cString: folder))/\(path)"
}

func parseArguments() -> CommandLineOptions {
    var options = CommandLineOptions()
    var left = CommandLine.arguments.dropFirst()[...]
    while let word = left.popFirst() {
        func value() -> String {
            guard let next = left.popFirst() else { fail("\(word) needs a value") }
            return next
        }
        switch word {
        case "--quick": options.runner.subject.isQuick = true
        case "--only": options.only += value().split(separator: ",").map(String.init)
        case "--skip": options.skip += value().split(separator: ",").map(String.init)
        case "--format": options.runner.subject.format = value()
        case "--image": options.runner.image = value()
        case "--location":
            guard options.runner.subject.locations.count < 2 else { fail("--location is given at most twice") }
            options.runner.subject.locations.append(value())
        case "--overwrite": options.overwrites = true
        case "--reference": options.runner.subject.reference = value()
        case "--tap": options.output = .tap
        case "--json": options.output = .json
        case "--junit": options.junit = value()
        case "--time-limit": options.runner.timeLimit = number(value(), word)
        case "--memory-limit": options.runner.memoryLimit = number(value(), word)
        case "--verbose": options.runner.isVerbose = true
        case "--run-check": options.check = value()
        case "--folder": options.runner.subject.folder = value()
        case "--list":
            for check in Check.all { print("\(check.identifier): \(check.summary)") }
            exit(0)
        case "--help":
            print(usage, terminator: "")
            exit(0)
        case "--version":
            print("xbb-plugin-check \(xbbVersion)")
            exit(0)
        case "--":
            for option in left {
                let pair = option.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
                guard pair.count == 2 else { fail("'\(option)': expected NAME=VALUE behind --") }
                options.runner.subject.options[pair[0]] = pair[1]
            }
            left = []
        default:
            if word.hasPrefix("-") { fail("unknown option \(word)") }
            guard options.runner.subject.path.isEmpty else {
                fail("one plugin at a time, and '\(word)' is a second one")
            }
            options.runner.subject.path = absolute(word)
        }
    }
    return options
}

func selected(_ options: CommandLineOptions) -> [Check] {
    func matches(_ check: Check, _ names: [String]) -> Bool {
        names.contains(check.group.rawValue) || names.contains(check.identifier)
    }
    for name in options.only + options.skip
    where Check.Group(rawValue: name) == nil && !Check.all.contains(where: { $0.identifier == name }) {
        fail("there is no check or group '\(name)'; see --list")
    }
    return Check.all.filter { check in
        (options.only.isEmpty || matches(check, options.only)) && !matches(check, options.skip)
    }
}

func output(_ text: String) {
    print(text, terminator: "")
    fflush(nil)
}

let options = parseArguments()
if options.runner.subject.path.isEmpty { fail("which plugin?") }

if let name = options.check {
    guard let check = Check.all.first(where: { $0.identifier == name }) else { fail("there is no check '\(name)'") }
    var subject = options.runner.subject
    subject.image = options.runner.image
    Bench.run(
        check, subject, reportingTo: 3, memoryLimit: options.runner.memoryLimit,
        isVerbose: options.runner.isVerbose)
}

if unsafe access(options.runner.subject.path, R_OK) != 0 {
    fail("cannot read \(options.runner.subject.path): \(unsafe String(cString: strerror(errno)))")
}
if let image = options.runner.image {
    var status = stat()
    guard unsafe stat(image, &status) == 0 else {
        fail("cannot read \(image): \(unsafe String(cString: strerror(errno)))")
    }
    if status.st_mode & S_IFMT == S_IFBLK, !options.overwrites {
        fail("\(image) is a block device, which is written over: say --overwrite where that is meant")
    }
}
let checks = selected(options)
if options.output == .tap { output("TAP version 13\n1..\(checks.count)\n") }
var made = 0
var runner = options.runner
let results = runner.run(checks) { result in
    made += 1
    switch options.output {
    case .lines: output(result.line + "\n")
    case .tap: output(result.tap(number: made))
    case .json: break
    }
}
if let misuse = runner.misuse { fail(misuse) }
let counts = results.counts
switch options.output {
case .lines:
    output("\(counts.passed) passed, \(counts.failed) failed, \(counts.skipped) skipped\n")
case .tap: break
case .json: output(results.json(plugin: options.runner.subject.path).serialized + "\n")
}
if let path = options.junit {
    do throws(Failure) {
        try writeText(results.junit(suite: "xbb-plugin-check"), to: path)
    } catch {
        fail(error.description)
    }
}
exit(counts.failed > 0 ? 1 : counts.passed > 0 ? 0 : 77)
