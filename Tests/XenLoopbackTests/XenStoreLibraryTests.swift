// SPDX-License-Identifier: BSD-2-Clause
// The daemon as libxenstore sees it.
import Base
import CLinux
import CXen
import Glibc
import Testing
import Xen

@testable import XenLoopback

extension XenStoreTests {
    @Suite struct XenStoreLibraryTests {
        @Test func valuesAndDirectories() throws {
            let daemon = try TestDaemon()
            let store = try daemon.open()
            try store.write("/a/b", [0, 1, 2, 255, 0], in: .none)
            #expect(try store.read("/a/b", in: .none) == [0, 1, 2, 255, 0])
            try store.write("/a/empty", [], in: .none)
            #expect(try store.read("/a/empty", in: .none) == [])
            try store.makeDirectory("/a/dir", in: .none)
            #expect(try store.list("/a", in: .none) == ["b", "empty", "dir"])
            #expect(try store.list("/a/dir", in: .none) == [])
            let largest = [UInt8](repeating: 7, count: 4096 - 3)
            try store.write("/l", largest, in: .none)
            #expect(try store.read("/l", in: .none) == largest)
            #expect(store.code { try $0.write("/l", largest + [7], in: .none) } == E2BIG)
            try store.remove("/a", in: .none)
            #expect(try store.text("/a/b") == nil)
            #expect(try store.text("/local/domain/0/name") == "Domain-0")
            #expect(try store.list("/", in: .none) == ["tool", "local", "l"])
        }

        @Test func aLargeDirectoryComesWhole() throws {
            let daemon = try TestDaemon()
            let store = try daemon.open()
            var names: [String] = []
            for index in 0..<3000 {
                names.append("node-\(index)-\(String(repeating: "x", count: index % 17))")
                try store.write("/large/\(names[index])", "\(index)")
            }
            #expect(try store.list("/large", in: .none) == names)
            let transaction = try store.startTransaction()
            try store.remove("/large/\(names[0])", in: transaction)
            #expect(try store.list("/large", in: transaction) == Array(names.dropFirst()))
            store.abort(transaction)
            #expect(try store.list("/large", in: .none) == names)
        }

        @Test func errorsHaveTheirNumbers() throws {
            let daemon = try TestDaemon()
            try daemon.server.addDomain(1)
            let store = try daemon.open()
            let guest = try daemon.open(as: 1)
            #expect(store.code { _ = try $0.read("/none", in: .none) } == ENOENT)
            #expect(store.code { _ = try $0.list("/none", in: .none) } == ENOENT)
            #expect(store.code { _ = try $0.permissions(of: "/none", in: .none) } == ENOENT)
            #expect(store.code { try $0.remove("/none/below", in: .none) } == ENOENT)
            #expect(store.code { try $0.remove("/none", in: .none) } == 0)
            #expect(store.code { try $0.remove("/", in: .none) } == EINVAL)
            for path in ["//", "/a/", "/a b", "", "/\u{E4}"] {
                #expect(store.code { _ = try $0.read(path, in: .none) } == EINVAL)
                #expect(store.code { try $0.write(path, "x") } == EINVAL)
                #expect(store.code { try $0.watch(path, token: "t") } == EINVAL)
            }
            #expect(guest.code { _ = try $0.read("/none", in: .none) } == EACCES)
            #expect(guest.code { try $0.write("/none", "x") } == EACCES)
            #expect(guest.code { try $0.write("name", "x") } == EACCES)
            #expect(guest.code { try $0.makeDirectory("/none", in: .none) } == EACCES)
            #expect(guest.code { try $0.remove("/tool", in: .none) } == EACCES)
            try store.watch("/a", token: "t")
            #expect(store.code { try $0.watch("/a", token: "t") } == EEXIST)
            #expect(store.code { try $0.unwatch("/a", token: "u") } == ENOENT)
            #expect(store.code { _ = try $0.read("/a", in: XenStoreTransaction(id: 99)) } == ENOENT)
            #expect(store.code { _ = try $0.commit(XenStoreTransaction(id: 99)) } == ENOENT)
        }

        @Test func limitsOfAGuest() throws {
            let daemon = try TestDaemon()
            try daemon.server.addDomain(1)
            let guest = try daemon.open(as: 1)
            #expect(guest.code { try $0.write("data/x", [UInt8](repeating: 0, count: 2049), in: .none) } == ENOSPC)
            try guest.write("data/x", [UInt8](repeating: 0, count: 2000), in: .none)
            let long = String(repeating: "a", count: 2049)
            #expect(guest.code { try $0.makeDirectory(long, in: .none) } == EINVAL)
            // Directories of 100, so that no list of children is too long: 4 nodes are there, and data/x.
            var made = 0
            while guest.code({ try $0.makeDirectory("data/\(made / 100)/\(made % 100)", in: .none) }) == 0 { made += 1 }
            #expect(made == 1000 - 5 - 10)
            #expect(guest.code { try $0.makeDirectory("data/more", in: .none) } == ENOSPC)
            #expect(guest.code { try $0.write("data/x", "changed") } == 0)
            var watches = 0
            while guest.code({ try $0.watch("data", token: "\(watches)") }) == 0 { watches += 1 }
            #expect(watches == 128)
            #expect(guest.code { try $0.watch("data", token: "more") } == ENOSPC)
            let transactions = try (0..<10).map { _ in try guest.startTransaction() }
            #expect(guest.code { _ = try $0.startTransaction() } == ENOSPC)
            transactions.forEach { guest.abort($0) }
            #expect(guest.code { _ = try $0.startTransaction() } == 0)
        }

        @Test func permissionsBetweenDomains() throws {
            let daemon = try TestDaemon()
            try daemon.server.addDomain(1)
            try daemon.server.addDomain(2)
            let control = try daemon.open()
            let first = try daemon.open(as: 1)
            let second = try daemon.open(as: 2)
            let path = "/local/domain/1/data/shared"
            try first.write("data/shared", "x")
            let owned = XenStorePermission(domain: 1, read: false, write: false)
            #expect(try first.permissions(of: path, in: .none) == [owned])
            #expect(second.code { _ = try $0.read(path, in: .none) } == EACCES)
            let shared = [owned, XenStorePermission(domain: 2, read: true, write: false)]
            try first.setPermissions(of: path, to: shared, in: .none)
            #expect(try second.text(path) == "x")
            #expect(try second.permissions(of: path, in: .none) == shared)
            #expect(second.code { try $0.write(path, "y") } == EACCES)
            #expect(second.code { try $0.setPermissions(of: path, to: shared, in: .none) } == EACCES)
            let given = [XenStorePermission(domain: 2, read: true, write: true)]
            #expect(first.code { try $0.setPermissions(of: path, to: given, in: .none) } == EPERM)
            try control.setPermissions(of: path, to: given, in: .none)
            try second.write(path + "/below", "z")
            // Everybody may read and write, and it belongs to who made it.
            #expect(try first.permissions(of: path + "/below", in: .none) == given)
            try first.write(path + "/mine", "z")
            #expect(
                try control.permissions(of: path + "/mine", in: .none)
                    == [XenStorePermission(domain: 1, read: true, write: true)])
        }

        @Test func transactions() throws {
            let daemon = try TestDaemon()
            let store = try daemon.open()
            let other = try daemon.open()
            let first = try store.startTransaction()
            try store.write("/t/a/b/c", "1", in: first)
            try store.write("/t/a/d", "2", in: first)
            #expect(try store.list("/t/a", in: first) == ["b", "d"])
            #expect(try other.text("/t/a/d") == nil)
            #expect(try store.commit(first))
            #expect(try other.text("/t/a/b/c") == "1")

            let aborted = try store.startTransaction()
            try store.remove("/t", in: aborted)
            #expect(try store.text("/t/a/d", in: aborted) == nil)
            store.abort(aborted)
            #expect(try other.text("/t/a/d") == "2")

            let conflicting = try store.startTransaction()
            let value = try #require(try store.text("/t/a/d", in: conflicting))
            try other.write("/t/a/d", "3")
            try store.write("/t/a/e", value, in: conflicting)
            #expect(try !store.commit(conflicting))
            #expect(try other.text("/t/a/e") == nil)

            // A counter that two clients raise loses nothing.
            try store.write("/counter", "0")
            var raises = 50
            for index in 0..<50 {
                try store.transaction { transaction throws(OperationError) in
                    let now = try Int(store.text("/counter", in: transaction) ?? "") ?? -1
                    if index % 3 == 0, (now + index) % 2 == 0 {
                        try other.transaction { transaction throws(OperationError) in
                            let now = try Int(other.text("/counter", in: transaction) ?? "") ?? -1
                            try other.write("/counter", "\(now + 1)", in: transaction)
                        }
                        raises += 1
                    }
                    try store.write("/counter", "\(now + 1)", in: transaction)
                }
            }
            #expect(raises > 50)
            #expect(try store.text("/counter") == "\(raises)")
        }

        @Test func watches() throws {
            let daemon = try TestDaemon()
            try daemon.server.addDomain(1)
            let store = try daemon.open()
            let guest = try daemon.open(as: 1)
            #expect(try store.nextWatchEvent() == nil)
            try store.watch("/local/domain/1/device", token: "tok en")
            #expect(
                try store.waitForEvent() == XenStoreWatchEvent(path: "/local/domain/1/device", token: "tok en"))
            try guest.write("device/vbd/1/state", "1")
            #expect(try store.waitForEvent().path == "/local/domain/1/device/vbd/1/state")
            try guest.watch("device/vbd", token: "rel")
            #expect(try guest.waitForEvent() == XenStoreWatchEvent(path: "device/vbd", token: "rel"))
            try store.write("/local/domain/1/device/vbd/1/state", "4")
            #expect(try guest.waitForEvent() == XenStoreWatchEvent(path: "device/vbd/1/state", token: "rel"))
            #expect(try store.waitForEvent().path == "/local/domain/1/device/vbd/1/state")
            try guest.remove("device/vbd", in: .none)
            #expect(try guest.waitForEvent().path == "device/vbd")
            #expect(try store.waitForEvent().path == "/local/domain/1/device/vbd")
            let transaction = try guest.startTransaction()
            try guest.write("device/a", "", in: transaction)
            try guest.write("device/b", "", in: transaction)
            try store.write("/local/domain/1/device/first", "")
            guest.abort(transaction)
            #expect(try store.waitForEvent().path == "/local/domain/1/device/first")
            try store.unwatch("/local/domain/1/device", token: "tok en")
            try store.watch("/other", token: "o")
            try guest.write("device/c", "")
            try store.write("/other/x", "")
            #expect(try store.waitForEvent().path == "/other")
            #expect(try store.waitForEvent().path == "/other/x")
            #expect(try store.nextWatchEvent() == nil)
        }

        @Test func domains() throws {
            let daemon = try TestDaemon()
            let store = try daemon.open()
            try store.watch("@introduceDomain", token: "in")
            try store.watch("@releaseDomain", token: "out")
            #expect(try store.waitForEvent().token == "in")
            #expect(try store.waitForEvent().token == "out")
            #expect(try store.domainPath(7) == "/local/domain/7")
            #expect(try store.isDomainIntroduced(0))
            #expect(try !store.isDomainIntroduced(7))
            try daemon.server.addDomain(7)
            #expect(try store.waitForEvent() == XenStoreWatchEvent(path: "@introduceDomain", token: "in"))
            #expect(try store.isDomainIntroduced(7))
            #expect(try store.text("/local/domain/7/domid") == "7")
            let guest = try daemon.open(as: 7)
            #expect(try guest.text("domid") == "7")
            #expect(try guest.domainPath(7) == "/local/domain/7")
            #expect(throws: OperationError(EEXIST, "add domain 7")) { try daemon.server.addDomain(7) }
            #expect(throws: OperationError(EINVAL, "add domain 0")) { try daemon.server.addDomain(0) }
            #expect(throws: OperationError(EINVAL, "add domain 32752")) { try daemon.server.addDomain(0x7FF0) }
            daemon.server.removeDomain(7)
            daemon.server.removeDomain(7)
            #expect(try store.waitForEvent() == XenStoreWatchEvent(path: "@releaseDomain", token: "out"))
            #expect(try !store.isDomainIntroduced(7))
            #expect(try store.text("/local/domain/7/domid") == nil)
            #expect(access(daemon.server.socketPath(of: 7), F_OK) != 0)
            #expect(guest.code { _ = try $0.read("domid", in: .none) } != 0)
            #expect(throws: OperationError.self) { try daemon.open(as: 7) }
            try daemon.server.addDomain(7)
            #expect(try daemon.open(as: 7).text("domid") == "7")
        }

        @Test func introduceAndReleaseOverTheWireMakeAndRemoveASocket() async {
            await #expect(processExitsWith: .success) {
                let daemon = try TestDaemon()
                let control = try daemon.openHandle()
                #expect(control.code { xs_introduce_domain($0, 9, 1234, 5) } == 0)
                #expect(try daemon.open(as: 9).code { _ = try $0.read("domid", in: .none) } == EACCES)
                let guest = try daemon.openHandle(as: 9)
                #expect(guest.code { xs_release_domain($0, 9) } == EACCES)
                #expect(guest.code { xs_introduce_domain($0, 10, 1, 1) } == EACCES)
                #expect(control.code { xs_resume_domain($0, 9) } == 0)
                #expect(control.code { xs_set_target($0, 9, 9) } == 0)
                #expect(control.code { xs_introduce_domain($0, 0, 1, 1) } == EINVAL)
                #expect(control.code { xs_release_domain($0, 9) } == 0)
                #expect(control.code { xs_release_domain($0, 9) } == ENOENT)
                #expect(throws: OperationError.self) { try daemon.open(as: 9) }
                #expect(control.control("help")?.contains("check") == true)
                #expect(control.control("live-update") == nil)
            }
        }

        @Test func whatADeadClientLeftIsGone() throws {
            let daemon = try TestDaemon()
            try daemon.server.addDomain(1)
            let store = try daemon.open()
            for _ in 0..<30 {
                let guest = try daemon.open(as: 1)
                for token in 0..<100 { try guest.watch("data", token: "\(token)") }
                for _ in 0..<10 {
                    let transaction = try guest.startTransaction()
                    try guest.write("data/x", "never", in: transaction)
                }
            }
            #expect(try store.text("/local/domain/1/data/x") == nil)
        }
    }
}
