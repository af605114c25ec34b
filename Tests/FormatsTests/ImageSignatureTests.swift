// SPDX-License-Identifier: BSD-2-Clause
// What a file is by its magic, for an operator who took it for something else.
import Foundation
import ImageCore
import Testing

@testable import QCOW2

@Suite struct ImageSignatureTests {
    /// What qemu-img makes, and other tools.
    static let made: [(command: String, name: String)] = [
        ("qemu-img create -q -f qcow2 image 1M", "a QCOW image"),
        ("qemu-img create -q -f qcow image 1M", "a QCOW image"),
        ("qemu-img create -q -f vpc image 1M", "a VHD image"),
        ("qemu-img create -q -f vpc -o subformat=fixed image 1M", "a VHD image"),
        ("qemu-img create -q -f vhdx image 1M", "a VHDX image"),
        ("qemu-img create -q -f vmdk image 1M", "a VMDK image"),
        ("qemu-img create -q -f vmdk -o subformat=monolithicFlat image 1M", "a VMDK descriptor"),
        ("qemu-img create -q -f vdi image 1M", "a VDI image"),
        ("qemu-img create -q -f qed image 1M", "a QED image"),
        ("qemu-img create -q -f parallels image 1M", "a parallels image"),
        ("printf 'LUKS\\272\\276' >image; truncate -s 1M image", "a LUKS volume"),
        ("head -c 4096 /dev/zero | gzip >image", "a gzip file"), ("head -c 4096 /dev/zero | xz >image", "an xz file"),
        ("head -c 4096 /dev/zero | bzip2 >image", "a bzip2 file"),
        ("touch x; tar cf image x", "a tar archive, or an OVA"),
    ]

    @Test(arguments: made) func isNamed(_ file: (command: String, name: String)) throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let shell = Process()
        shell.executableURL = URL(fileURLWithPath: "/bin/sh")
        shell.arguments = ["-c", file.command]
        shell.currentDirectoryURL = folder
        try shell.run()
        shell.waitUntilExit()
        try #require(shell.terminationStatus == 0, "\(file.command)")
        let bytes = [UInt8](try Data(contentsOf: folder.appendingPathComponent("image")))
        #expect(ImageSignature(of: ArrayReader(bytes))?.name == file.name)
        guard file.name != "a QCOW image" else { return }
        // Whoever takes it for QCOW is told what it is.
        do throws(ImageError) {
            _ = try QCOWCheck(examining: ArrayReader(bytes))
            Issue.record("it was taken for QCOW")
        } catch {
            #expect(error.message.hasPrefix("this is \(file.name), no QCOW image: "), "\(error.message)")
        }
    }

    /// What a package of XBB serves need not be converted.
    @Test func aVHDNamesItsPackage() throws {
        let magic = Array("conectix".utf8)
        let (end, zeroes) = ([UInt8](repeating: 0, count: 504), [UInt8](repeating: 0, count: 512))
        for (head, tail) in [(magic + end, zeroes), (zeroes, magic + end), (zeroes, [0] + magic + end.dropLast())] {
            let signature = try #require(ImageSignature(head: head, tail: tail))
            #expect(signature.remedy == "attach it as vhd, for which there is the package xbb-plugin-vhd")
        }
    }

    @Test func whatTellsNothingIsNothing() throws {
        #expect(ImageSignature(head: [UInt8](), tail: [UInt8]()) == nil)
        #expect(ImageSignature(head: [0x1f], tail: [0x1f]) == nil)
        #expect(ImageSignature(of: ArrayReader([UInt8](repeating: 0, count: 100_000))) == nil)
        // In the middle it is somebody's data.
        var bytes = [UInt8](repeating: 0, count: 8192)
        bytes.replaceSubrange(4096..<4104, with: Array("conectix".utf8))
        #expect(ImageSignature(of: ArrayReader(bytes)) == nil)
        do throws(ImageError) {
            _ = try QCOWCheck(examining: ArrayReader(bytes))
        } catch {
            #expect(error.message == "this is no QCOW image: it does not begin with 'QFI' 0xfb")
        }
    }
}
