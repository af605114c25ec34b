// SPDX-License-Identifier: BSD-2-Clause
// xbbctl top at a terminal: a shell in a pseudo terminal, and what a person types.
import Base
import CLinux
import Glibc
import Support
import Testing

@testable import XBBControl

/// A terminal with a shell, and all that is shown there.
private final class ShellTerminal {
    let master: Descriptor
    private let shell: Program
    private(set) var output = ""

    init(_ lab: DaemonLab, rows: UInt16, columns: UInt16) throws {
        master = try Descriptor(
            clinux_open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK, 0), "open a terminal")
        // What grantpt(3) and unlockpt(3) do on Linux; the numbers are those of asm-generic/ioctls.h.
        var (number, isLocked) = (Int32(0), Int32(0))
        try #require(clinux_ioctl_pointer(master.raw, 0x8004_5430, &number) == 0)
        try #require(clinux_ioctl_pointer(master.raw, 0x4004_5431, &isLocked) == 0)
        let path = "/dev/pts/\(number)"
        lab.put(
            "shell.sh",
            """
            cd \(lab.root)
            export PATH=\(DaemonLab.products):/usr/bin:/bin TERM=xterm LC_ALL=C PS1='ready> ' HOME=\(lab.root)
            exec setsid --ctty --wait bash --norc --noprofile -i <\(path) >\(path) 2>&1
            """)
        // The kernel forgets the size of a terminal that nobody has open.
        let kept = try Descriptor(clinux_open(path, O_RDWR | O_NOCTTY | O_CLOEXEC, 0), "open \(path)")
        var size = winsize(ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0)
        try #require(clinux_ioctl_pointer(master.raw, UInt(TIOCSWINSZ), &size) == 0)
        shell = try Program(["/bin/sh", "\(lab.root)/shell.sh"])
        try awaitText("ready> ")
        _ = kept
    }

    func resize(rows: UInt16, columns: UInt16) throws {
        var size = winsize(ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0)
        try #require(clinux_ioctl_pointer(master.raw, UInt(TIOCSWINSZ), &size) == 0)
    }

    /// Types, and forgets what was shown before.
    func type(_ text: String) throws {
        take()
        output = ""
        var left = Array(text.utf8)[...]
        while !left.isEmpty {
            let count = left.withUnsafeBytes { write(master.raw, $0.baseAddress, $0.count) }
            if count > 0 { left = left.dropFirst(count) }
        }
    }

    private func take() {
        while case .bytes(let bytes) = master.readAvailable() { output += String(decoding: bytes, as: UTF8.self) }
    }

    /// Waits until something is shown.
    func awaitText(_ text: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
        try eventually("'\(text)' is shown", sourceLocation: sourceLocation) {
            take()
            return output.contains(text)
        }
    }

    /// The lines of the last whole picture.
    var picture: [String] {
        take()
        let frames = output.split(separator: "\u{1b}[H", omittingEmptySubsequences: false).map(String.init)
        // The last one may not be whole yet.
        guard frames.count > 2 else { return [] }
        return frames[frames.count - 2].split(separator: "\r\n", omittingEmptySubsequences: false).map { line in
            // What follows the escapes, which end with a letter.
            let parts = line.split(separator: "\u{1b}", omittingEmptySubsequences: false)
            let rest = parts.dropFirst().map { String($0.drop { !$0.isLetter }.dropFirst()) }
            return String(parts[0]) + rest.joined()
        }
    }
}

@Suite struct TerminalTests {
    @Test("top: keys, another size, Ctrl-Z, Ctrl-C and SIGTERM; the terminal is as it was after each of them")
    func top() throws {
        let lab = try DaemonLab()
        try lab.store.write("/local/domain/1/name", "web")
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        let terminal = try ShellTerminal(lab, rows: 24, columns: 80)
        let command = "xbbctl top -d 0.1 --loopback \(lab.root)/xen --socket \(lab.socket)"
        var modes: [String] = []
        /// What stty says of the terminal, at the prompt.
        func note() throws {
            try terminal.type("stty -g >mode; echo no\"\"ted\n")
            try terminal.awaitText("noted")
            try terminal.awaitText("ready> ")
            modes.append(String(decoding: SmallFile.contents(lab.root + "/mode", limit: 1000) ?? [], as: UTF8.self))
        }
        try note()
        try terminal.type(command + "\n")
        try terminal.awaitText("\u{1b}[?1049h")
        try eventually("a picture") { terminal.picture.count == 24 }
        #expect(terminal.picture[0].hasPrefix("xbbctl top ") && terminal.picture[0].contains(", 1 disk,"))
        #expect(terminal.picture[3].hasPrefix("web        xvda  "), "\(terminal.picture)")
        try terminal.resize(rows: 10, columns: 40)
        try eventually("a smaller picture") { terminal.picture.count == 10 }
        #expect(terminal.picture.allSatisfy { $0.count <= 40 }, "\(terminal.picture)")
        try terminal.type("/nobody\r")
        try terminal.awaitText("0 of 1 disk")
        try terminal.type("\u{1b}")
        try terminal.awaitText(", 1 disk,")
        try terminal.type("h")
        try terminal.awaitText("keep the picture")
        try terminal.type("x")
        try terminal.awaitText(", 1 disk,")
        try terminal.type("\u{1a}")
        try terminal.awaitText("Stopped")
        try terminal.awaitText("\u{1b}[?1049l")
        try note()
        try terminal.type("fg\n")
        try terminal.awaitText("\u{1b}[?1049h")
        try eventually("a picture again") { terminal.picture.count == 10 }
        // xbbd goes away for a while: what is known stays, and why it is old is said.
        lab.killDaemons()
        try terminal.awaitText("cannot reach xbbd")
        try lab.startDaemon()
        try terminal.type("s")
        try terminal.awaitText("DOMAINv")
        try terminal.type("q")
        try terminal.awaitText("ready> ")
        try note()
        // Signals.
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            try terminal.type("sh -c 'echo $$ >pid; exec \(command)'\n")
            try eventually("a picture") { terminal.picture.count == 10 }
            if signal == SIGINT {
                try terminal.type("\u{3}")
            } else {
                let text = String(decoding: SmallFile.contents(lab.root + "/pid", limit: 100) ?? [], as: UTF8.self)
                let process = try #require(Int32(text.prefix { $0.isNumber }))
                kill(process, signal)
            }
            try terminal.awaitText("ready> ")
            #expect(terminal.output.contains("\u{1b}[?1049l"))
            try terminal.type("echo status=$?\n")
            try terminal.awaitText("status=\(128 + signal)")
            try terminal.awaitText("ready> ")
            try note()
        }
        #expect(Swift.Set(modes).count == 1 && modes.count == 6 && !modes[0].isEmpty, "\(modes)")
        try terminal.type("exit\n")
    }

    @Test("top for scripts: as many looks as are asked for, sorted and filtered") func batch() throws {
        let lab = try DaemonLab()
        for (domain, name) in [("1", "web"), ("2", "mail")] {
            try lab.store.write("/local/domain/\(domain)/name", name)
        }
        _ = try lab.makeNode(1, 51712)
        _ = try lab.makeNode(2, 51712)
        try lab.startDaemon()
        try eventually("they are taken") {
            try lab.ask(.list)["vbds"]?.elements.filter { $0["state"]?.string == "initWait" }.count == 2
        }
        let (text, exit) = try lab.control(["top", "--batch", "-n", "2", "-d", "0.1", "--sort", "domain"])
        let lines = text.split(separator: "\n")
        #expect(exit == .clean && lines.count == 6, "\(text)")
        #expect(
            lines[0].hasPrefix("DOMID  DOMAIN  DEVICE  WORKER ") && lines[1].contains("mail")
                && lines[5].contains("web"))
        let one = try lab.control(["top", "-n", "1", "-d", "0.1", "-F", "domain=web"]).text
        #expect(one.contains("web") && !one.contains("mail") && !one.contains("\u{1b}"))
        #expect(try lab.control(["top", "--iterations", "0"]).exit == .failed(64))
        #expect(try lab.control(["top", "--sort", "colour"]).exit == .failed(64))
    }
}
