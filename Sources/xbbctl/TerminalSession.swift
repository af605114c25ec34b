// SPDX-License-Identifier: BSD-2-Clause
// A terminal as a screen that programs draw on: keys come at once, and when this ends, is stopped or is killed, all is as it was.
//
// Signals come through a descriptor, so that nothing happens in the middle of something else.
import Base
import CLinux
import Glibc
import XBBControl

/// The terminal of standard input and output.
final class TerminalSession {
    /// What has happened.
    enum Happening {
        case keys([TerminalKey])
        /// The terminal has another size, or shows something else.
        case redraw
        /// Nobody is at the terminal any more.
        case hungUp
        /// The program is to end with this signal.
        case ended(Int32)
        case time
    }

    /// Programs that are told these end, and leave the terminal as it was before.
    private static let ends = [SIGINT, SIGTERM, SIGHUP, SIGQUIT]
    private static let signals = ends + [SIGTSTP, SIGCONT, SIGWINCH]

    private let signals: Descriptor
    private let before: termios
    private var isEntered = false

    /// False where there is nobody who could press keys, or the terminal knows no places on a screen.
    static var isPossible: Bool {
        guard isatty(0) == 1, isatty(1) == 1 else { return false }
        let kind = environment("TERM")
        return !kind.isEmpty && kind != "dumb"
    }

    /// Block elements where the terminal's user says that it has UTF-8.
    static var barStyle: BarStyle {
        let words = ["LC_ALL", "LC_CTYPE", "LANG"].lazy.map(environment).first { !$0.isEmpty } ?? ""
        let lower = words.lowercased()
        return lower.contains("utf-8") || lower.contains("utf8") ? .blocks : .plain
    }

    private static func environment(_ name: String) -> String {
        // The text is copied at once, and nothing here changes the environment.
        unsafe getenv(name).map { unsafe String(cString: $0) } ?? ""
    }

    /// Takes the terminal over. ``leave()`` gives it back.
    init() throws(ControlError) {
        var mode = termios()
        guard unsafe tcgetattr(0, &mode) == 0 else { throw ControlError("look at the terminal: \(errnoText(errno))") }
        before = mode
        do throws(OperationError) {
            var set = sigset_t()
            unsafe sigemptyset(&set)
            for number in Self.signals { unsafe sigaddset(&set, number) }
            unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
            signals = try Descriptor(
                unsafe signalfd(-1, &set, Int32(SFD_CLOEXEC) | Int32(SFD_NONBLOCK)), "signalfd")
        } catch {
            throw ControlError("\(error)")
        }
        enter()
    }

    private func enter() {
        var mode = before
        // Ctrl-C and Ctrl-Z go on to be signals.
        mode.c_lflag &= ~tcflag_t(ICANON | ECHO)
        // Lines end where we say.
        mode.c_oflag &= ~tcflag_t(OPOST)
        mode.c_cc.5 = 0  // VTIME
        mode.c_cc.6 = 1  // VMIN
        unsafe tcsetattr(0, TCSADRAIN, &mode)
        isEntered = true
        // Another screen, without a cursor.
        write("\u{1b}[?1049h\u{1b}[?25l\u{1b}[2J")
    }

    /// Gives the terminal back as it was.
    func leave() {
        guard isEntered else { return }
        isEntered = false
        write("\u{1b}[m\u{1b}[?25h\u{1b}[?1049l")
        var mode = before
        unsafe tcsetattr(0, TCSADRAIN, &mode)
    }

    /// The size of the terminal now.
    var size: ScreenSize {
        let window = Self.window
        return window.map { ScreenSize(rows: Int($0.ws_row), columns: Int($0.ws_col)) }
            ?? ScreenSize(rows: 24, columns: 80)
    }

    /// How wide standard output is: 80 where it is no terminal.
    static var columns: Int { window.map { Int($0.ws_col) } ?? 80 }

    private static var window: winsize? {
        var size = winsize()
        // The call fills the structure.
        let isKnown = unsafe clinux_ioctl_pointer(1, UInt(TIOCGWINSZ), &size) == 0 && size.ws_row > 0 && size.ws_col > 0
        return isKnown ? size : nil
    }

    /// Shows the lines, the first one at the top.
    func show(_ lines: [ScreenLine]) {
        var text = "\u{1b}[H"
        for (index, line) in lines.enumerated() {
            if index > 0 { text += "\r\n" }
            text += line.isInverse ? "\u{1b}[7m\(line.text)\u{1b}[m" : line.text
            text += "\u{1b}[K"
        }
        write(text)
    }

    /// Waits until something happens, or until a time in ns of CLOCK_MONOTONIC.
    func wait(until deadline: UInt64) -> Happening {
        while true {
            var entries = [
                pollfd(fd: signals.raw, events: Int16(POLLIN), revents: 0),
                pollfd(fd: 0, events: Int16(POLLIN), revents: 0),
            ]
            let now = clinux_monotonic_ns()
            let milliseconds = deadline <= now ? 0 : Int32(clamping: (deadline - now) / 1_000_000 + 1)
            let count = unsafe poll(&entries, 2, milliseconds)
            if count == 0 { return .time }
            if count < 0 { continue }  // EINTR
            if entries[0].revents != 0, let happening = takeSignal() { return happening }
            if entries[1].revents != 0 {
                var bytes = [UInt8](repeating: 0, count: 256)
                let count = unsafe bytes.withUnsafeMutableBytes { unsafe read(0, $0.baseAddress, $0.count) }
                if count <= 0 { return count < 0 && errno == EINTR ? .time : .hungUp }
                return .keys(TerminalKey.keys(in: Array(bytes[..<count])))
            }
        }
    }

    private func takeSignal() -> Happening? {
        var info = signalfd_siginfo()
        // The kernel fills whole structures, or nothing.
        guard
            unsafe read(signals.raw, &info, MemoryLayout<signalfd_siginfo>.size) == MemoryLayout<signalfd_siginfo>.size
        else { return nil }
        let number = Int32(truncatingIfNeeded: info.ssi_signo)
        switch number {
        case SIGWINCH: return .redraw
        case SIGTSTP:
            leave()
            Self.raiseDefault(SIGTSTP)
            enter()
            return .redraw
        case SIGCONT:
            enter()
            return .redraw
        default: return .ended(number)
        }
    }

    /// What the signal does to a program that does not care for it.
    static func raiseDefault(_ number: Int32) {
        var set = sigset_t()
        unsafe sigemptyset(&set)
        unsafe sigaddset(&set, number)
        signal(number, SIG_DFL)
        raise(number)
        unsafe pthread_sigmask(SIG_UNBLOCK, &set, nil)
        unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
    }

    private func write(_ text: String) {
        var left = Array(text.utf8)[...]
        while !left.isEmpty {
            // Within the closure the bytes are valid, and their number is passed on.
            let count = unsafe left.withUnsafeBytes { unsafe Glibc.write(1, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            if count <= 0 { return }  // the terminal is gone, which the next wait says
            left = left.dropFirst(count)
        }
    }
}
