// SPDX-License-Identifier: BSD-2-Clause
// Which client of this host has an image, and which image that is, for the process that follows it.
import Glibc
import PluginKit

/// A note in the run directory: the address of the Ceph client that may have written to an image, and what the image is beside
/// its name. The process that has the flock(2) on it is the only one of this host that serves the image for writing. So whoever
/// gets the lock knows that the client in the note is dead or has closed the image, and that it is no other host's. Disks that only
/// read have a note of their own, without a client, whose lock they share.
///
/// The file is mapped and its writable descriptor closed before the process is confined: it cannot grow.
///
/// `@unchecked Sendable`: control calls alone use it, one after the other.
@safe
final class HolderNote: @unchecked Sendable {
    private static let size = 4096
    /// Where the address begins, and the identity; bytes of each, the 0 at the end included.
    private static let (address, identity, room) = (0, 128, 128)
    private let page: UnsafeMutableRawPointer
    private let lock: Int32

    /// Opens the note of an image and takes its lock; EBUSY where another process of this host has it. With the rights of root.
    init(of image: ImageName, cluster: String, isReader: Bool, in directory: String) throws(PluginError) {
        guard unsafe mkdir(directory, 0o700) == 0 || errno == EEXIST else {
            throw PluginError(system: "cannot make \(directory) (option run-dir)")
        }
        let name = Self.fileName("\(cluster)/\(image.location)") + (isReader ? "@read" : "")
        let path = "\(directory)/\(name)"
        let writable = unsafe open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard writable >= 0 else { throw PluginError(system: "cannot open \(path)") }
        defer { _ = close(writable) }
        let lock = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
        guard lock >= 0 else { throw PluginError(system: "cannot open \(path)") }
        guard flock(lock, (isReader ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0 else {
            let code = errno
            close(lock)
            throw code == EWOULDBLOCK
                ? PluginError(
                    EBUSY, "\(image.text) is served by another process of this host, which has \(path) locked")
                : PluginError(system: "cannot lock \(path)", code)
        }
        let code = posix_fallocate(writable, 0, off_t(Self.size))
        let page = unsafe mmap(nil, Self.size, PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0)
        guard code == 0, let page = unsafe page, unsafe page != MAP_FAILED else {
            let failure = code != 0 ? code : errno
            close(lock)
            throw PluginError(system: "no room for \(path)", failure)
        }
        self.lock = lock
        unsafe self.page = unsafe page
    }

    deinit {
        unsafe _ = munmap(page, Self.size)
        _ = close(lock)
    }

    /// The address of the client before; nil if it closed the image. A hijacked process may have written anything here.
    var client: String? { text(at: Self.address) }

    /// What the image was that was served under this name; nil: none was.
    var image: String? { text(at: Self.identity) }

    /// Notes the client that will write to the image from now on; nil: none.
    func set(client: String?) { set(client, at: Self.address) }

    /// Notes what the image is. Others that read it, and have the same note, never find it empty.
    func set(image: String) {
        if self.image != image { set(image, at: Self.identity) }
    }

    private func text(at start: Int) -> String? {
        var bytes: [UInt8] = []
        for index in start..<start + Self.room {
            let byte = unsafe page.load(fromByteOffset: index, as: UInt8.self)
            guard byte != 0 else { return bytes.isEmpty ? nil : String(decoding: bytes, as: UTF8.self) }
            guard Self.isKnown(byte) else { return nil }
            bytes.append(byte)
        }
        return nil
    }

    private func set(_ text: String?, at start: Int) {
        unsafe memset(page + start, 0, Self.room)
        guard let text else { return }
        // The first byte last: a process that is killed in between has noted nothing, and done nothing yet.
        for (index, byte) in Array(text.utf8.prefix(Self.room - 1)).enumerated().reversed() {
            unsafe page.storeBytes(of: byte, toByteOffset: start + index, as: UInt8.self)
        }
    }

    /// Of an address, [2001:db8::1]:0/123, or of the name of an image's objects.
    private static func isKnown(_ byte: UInt8) -> Bool {
        switch UnicodeScalar(byte) {
        case "0"..."9", "a"..."z", "A"..."Z", ".", ":", "[", "]", "/", "_", "-", "%", "@": true
        default: false
        }
    }

    /// A name without '/' for each text, and none for two texts.
    private static func fileName(_ text: String) -> String {
        let digits = Array("0123456789abcdef")
        return text.utf8.map { byte in
            switch UnicodeScalar(byte) {
            case "0"..."9", "a"..."z", "A"..."Z", "-", "_", ".": String(UnicodeScalar(byte))
            default: "%\(digits[Int(byte >> 4)])\(digits[Int(byte & 15)])"
            }
        }.joined()
    }
}
