// SPDX-License-Identifier: BSD-2-Clause
// xbb-loopback run: serves until a signal arrives.
import Base
import ArgumentParser
import CLinux
import Glibc
import XenLoopback

/// Serves a directory in the foreground.
struct Run: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Serve until SIGTERM, SIGINT or SIGHUP.",
        discussion: "Prints one line when clients can connect. Domains and their grants are gone when it ends.")

    @OptionGroup var place: Place
    @Option(help: "Write a line to this descriptor when clients can connect, and close it.")
    var readyFd: Int32?
    @Option(help: "Keep the process's number in this file while it runs.")
    var pidFile: String?

    func run() throws {
        raiseDescriptorLimit()
        // Blocked before any thread starts, so that only sigwait() below receives them.
        var signals = sigset_t()
        unsafe sigemptyset(&signals)
        for signal in [SIGTERM, SIGINT, SIGHUP] { unsafe sigaddset(&signals, signal) }
        unsafe pthread_sigmask(SIG_BLOCK, &signals, nil)

        let xen = try LoopbackXen(directory: place.directory)
        if let pidFile { try write("\(getpid())\n", toFile: pidFile) }
        defer {
            if let pidFile { unsafe unlink(pidFile) }
        }
        print("xbb-loopback: ready in \(place.directory)")
        fflush(nil)
        if let readyFd {
            _ = write("ready\n", to: readyFd)
            close(readyFd)
        }
        var received: Int32 = 0
        unsafe sigwait(&signals, &received)
        xen.stop()
    }

    /// A client uses one descriptor, an event channel two more.
    private func raiseDescriptorLimit() {
        var limit = rlimit()
        let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        if unsafe getrlimit(resource, &limit) != 0 { return }
        limit.rlim_cur = limit.rlim_max
        _ = unsafe setrlimit(resource, &limit)
    }

    private func write(_ text: String, to descriptor: Int32) -> Bool {
        let bytes = Array(text.utf8)
        return unsafe bytes.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) } == bytes.count
    }

    private func write(_ text: String, toFile path: String) throws(OperationError) {
        let file = unsafe clinux_open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        if file < 0 { throw OperationError(errno, "write \(path)") }
        let done = write(text, to: file)
        close(file)
        if !done { throw OperationError(EIO, "write \(path)") }
    }
}
