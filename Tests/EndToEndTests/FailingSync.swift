// SPDX-License-Identifier: BSD-2-Clause
// A worker whose fdatasync(2) fails when the test says so.
import Foundation

/// A library in front of fdatasync(2), for the environment of a worker.
struct FailingSync {
    /// What it does, as the first byte of a file.
    enum Mode: UInt8 {
        /// What the kernel does.
        case works = 0
        /// Every call fails with EIO.
        case fails = 1
        /// As the kernel has it after an error of writing back: the next call, and it alone, gets the error.
        case failsOnce = 2
        /// That call was made, and returns when this mode is left.
        case isFailing = 3
    }

    let environment: [String]
    private let cell: String

    init(in directory: String) throws {
        cell = "\(directory)/sync-mode"
        try Data(count: 8).write(to: URL(fileURLWithPath: cell))
        let (library, source) = ("\(directory)/failing-sync.so", "\(directory)/failing-sync.c")
        try Self.source.write(toFile: source, atomically: true, encoding: .utf8)
        try LibxlLab.shell("gcc -O1 -shared -fPIC -o '\(library)' '\(source)'")
        environment = ["LD_PRELOAD=\(library)", "XBB_SYNC_FAULT=\(cell)"]
    }

    func set(_ mode: Mode) throws {
        let file = try FileHandle(forWritingTo: URL(fileURLWithPath: cell))
        try file.write(contentsOf: [mode.rawValue])
        try file.close()
    }

    func mode() throws -> Mode? {
        try Data(contentsOf: URL(fileURLWithPath: cell)).first.flatMap { Mode(rawValue: $0) }
    }

    private static let source = """
        #define _GNU_SOURCE
        #include <errno.h>
        #include <fcntl.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        static char *cell;
        __attribute__((constructor)) static void begin(void) {
            const char *name = getenv("XBB_SYNC_FAULT");
            int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
            void *memory = file < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            if (memory != MAP_FAILED) cell = memory;
            if (file >= 0) close(file);
        }
        int fdatasync(int file) {
            char pending = 2;
            if (cell && __atomic_load_n(cell, __ATOMIC_SEQ_CST) == 1) { errno = EIO; return -1; }
            if (cell && __atomic_compare_exchange_n(cell, &pending, 3, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
                while (__atomic_load_n(cell, __ATOMIC_SEQ_CST) == 3) usleep(1000);
                errno = EIO;
                return -1;
            }
            return (int)syscall(SYS_fdatasync, file);
        }
        """
}
