// SPDX-License-Identifier: BSD-2-Clause
// A worker for tests of xbbd: takes nodes as xbb-vbd does, and misbehaves as it is told.
//
// The file FAKE_WORKER_DIR/<kind>-<domid>-<devid> holds one word for the VBD (else "serve"):
//
//   serve      state 2, hotplug-status=connected, state 6 when asked; answers on its socket
//   bad-image  as serve, but hotplug-status=error
//   deaf       as serve, but does nothing on SIGTERM
//   stubborn   as serve, but never closes
//   mute       takes the node and never answers on its socket
//   absent     takes the node and does not listen, as one that has not come to it
//   garbage    answers with text that is no JSON
//   endless    answers without an end
//   trickle    answers byte for byte, without an end
//   exit N     ends with status N at once
//   crash      dies of SIGABRT at once
//   orphan     leaves a child that holds descriptor 3 for 2 seconds, and ends with status 1
//   hang       never gets ready to stand by
//   late N     stands by and takes over, then ends with status N
//   hand-over  hands over after 0.2 s: writes so into the lock's file and ends with status 0
//   desert     ends with status 0 after 0.2 s, and has not handed over
//
// Each start appends a line to FAKE_WORKER_DIR/log: number of the process, VBD.
import Base
import CLinux
import Glibc
import Xen

func argument(_ name: String) -> String? {
    guard let index = CommandLine.arguments.firstIndex(of: name), index + 1 < CommandLine.arguments.count
    else { return nil }
    return CommandLine.arguments[index + 1]
}

func contents(_ path: String) -> String? {
    let file = clinux_open(path, O_RDONLY, 0)
    guard file >= 0 else { return nil }
    defer { close(file) }
    var buffer = [UInt8](repeating: 0, count: 256)
    let count = read(file, &buffer, buffer.count)
    return String(decoding: buffer.prefix(max(count, 0)), as: UTF8.self)
}

func say(_ text: String, to file: Int32) {
    _ = text.withCString { write(file, $0, strlen($0)) }
}

func quoted(_ text: String) -> String { "\"\(text.split(separator: "\"").joined(separator: "\\\""))\"" }

@main
struct FakeWorker {
    let path: String
    let word: String
    let store: LibXenStore
    let listener: Int32
    let signals: Int32

    static func main() {
        signal(SIGPIPE, SIG_IGN)
        let directory = String(cString: getenv("FAKE_WORKER_DIR"))
        if CommandLine.arguments.contains("--dump-plugins") {
            let dump = contents("\(directory)/plugins") ?? "[]"
            if dump.hasPrefix("sleep") { sleep(60) }
            return print(dump)
        }
        guard let path = argument("--backend-path") else { exit(2) }
        let name = path.split(separator: "/").suffix(3).joined(separator: "-")
        // Before the start is logged: a test that sees the start may change the word for the next one.
        let word = contents("\(directory)/\(name)")?.split(separator: "\n").first.map(String.init) ?? "serve"
        let log = clinux_open("\(directory)/log", O_WRONLY | O_CREAT | O_APPEND, 0o600)
        say("\(getpid()) \(name)\n", to: log)
        close(log)
        switch word {
        case "crash": abort()
        case "orphan":
            var child: pid_t = 0
            var arguments = [strdup("/bin/sleep"), strdup("2"), nil]
            posix_spawn(&child, "/bin/sleep", nil, nil, &arguments, nil)
            exit(1)
        case "hand-over":
            usleep(200_000)
            handOver(path)
        case "desert":
            usleep(200_000)
            exit(0)
        case _ where word.hasPrefix("exit "): exit(Int32(word.dropFirst(5)) ?? 99)
        case "hang" where argument("--standby") != nil:
            while true { sleep(60) }
        default: break
        }
        if argument("--standby") != nil { standBy() }
        if word.hasPrefix("late ") { exit(Int32(word.dropFirst(5)) ?? 99) }
        do {
            try FakeWorker(path: path, word: word).run()
        } catch {
            say("fake-worker: \(error)\n", to: 2)
            exit(1)
        }
    }

    /// Ends, and leaves the disk to a successor.
    static func handOver(_ path: String) -> Never {
        var note = [UInt8](repeating: 0, count: 128)
        let count = pread(3, &note, note.count, 0)
        let line = note.prefix(max(count, 0)).prefix { $0 != UInt8(ascii: "\n") }
        try? LibXenStore().write("\(path)/xbb-handed-over", String(decoding: line, as: UTF8.self))
        flock(3, LOCK_UN)
        exit(0)
    }

    /// Waits for its turn as xbb-vbd does: a word on descriptor 4, then the lock of descriptor 3.
    static func standBy() {
        say("ready\n", to: 4)
        var word: [UInt8] = []
        var byte: UInt8 = 0
        while byte != UInt8(ascii: "\n") {
            if read(4, &byte, 1) != 1 { exit(0) }
            word.append(byte)
        }
        flock(3, LOCK_EX)
    }

    init(path: String, word: String) throws {
        self.path = path
        self.word = word
        store = try LibXenStore()
        let socket = argument("--control") ?? ""
        unlink(socket)
        listener = word == "absent" ? -1 : clinux_unix_listen(socket, Int32(SOCK_STREAM.rawValue), 8)
        var set = sigset_t()
        sigemptyset(&set)
        sigaddset(&set, SIGTERM)
        pthread_sigmask(SIG_BLOCK, &set, nil)
        signals = signalfd(-1, &set, Int32(SFD_CLOEXEC))
    }

    func run() throws {
        try store.watch(path, token: "")
        while true {
            var entries = [store.watchFileDescriptor, word == "deaf" ? -1 : signals, word == "mute" ? -1 : listener].map
            {
                pollfd(fd: $0, events: Int16(POLLIN), revents: 0)
            }
            poll(&entries, 3, -1)
            if entries[1].revents != 0, word != "deaf" { Self.handOver(path) }
            if entries[2].revents != 0 { answer() }
            while try store.nextWatchEvent() != nil {}
            try readNode()
        }
    }

    func readNode() throws {
        try store.transaction { (transaction) throws(OperationError) in
            switch try store.text("\(path)/state", in: transaction) {
            case nil where word == "immortal": break
            case nil: exit(0)
            case "1": try store.write("\(path)/state", "2", in: transaction)
            case "5" where word != "stubborn": try store.write("\(path)/state", "6", in: transaction)
            default: break
            }
            let hasImage = try store.text("\(path)/physical-device-path", in: transaction) != nil
            if hasImage, try store.text("\(path)/hotplug-status", in: transaction) == nil {
                if word == "bad-image" {
                    try store.write("\(path)/hotplug-error", "no such file or directory", in: transaction)
                }
                let status = word == "bad-image" ? "error" : "connected"
                try store.write("\(path)/hotplug-status", status, in: transaction)
            }
        }
        if try store.text("\(path)/state") == "6", try store.text("\(path)/online") == "0" { exit(0) }
    }

    func answer() {
        let client = clinux_accept(listener)
        guard client >= 0 else { return }
        defer { close(client) }
        _ = clinux_fcntl_int(client, F_SETFL, 0)
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = read(client, &buffer, buffer.count)
        guard count > 0 else { return }
        let line = String(decoding: buffer[..<count], as: UTF8.self).split(separator: "\n").first ?? ""
        switch word {
        case "garbage": say("{\"pid\": 1,,}\n", to: client)
        case "trickle": while write(client, "[", 1) == 1 { usleep(500) }
        case "endless":
            let block = String(repeating: "x", count: 65536)
            for _ in 0..<64 { say(block, to: client) }
        default:
            let arguments = CommandLine.arguments.map(quoted).joined(separator: ",")
            let facts = "\"request\":\(quoted(String(line))),\"stage\":\"ready\",\"pid\":\(getpid())"
            say("{\(facts),\"arguments\":[\(arguments)]}\n", to: client)
        }
    }
}
