// SPDX-License-Identifier: BSD-2-Clause
// VHDs as values: sizes, footers, what XenServer and Hyper-V write into names.
import Foundation
import ImageCore
import Testing
import VHD

private func put<T: FixedWidthInteger>(_ value: T, _ offset: Int, _ bytes: inout [UInt8]) {
    withUnsafeBytes(of: value.bigEndian) { for (index, byte) in $0.enumerated() { bytes[offset + index] = byte } }
}

private func seal(_ bytes: inout [UInt8], at place: Int) {
    put(UInt32(0), place, &bytes)
    put(~bytes.reduce(UInt32(0)) { $0 &+ UInt32($1) }, place, &bytes)
}

private func footer(
    kind: UInt32 = 2, size: UInt64, creator: String = "tap\0", cylinders: UInt16 = 0, heads: UInt8 = 0,
    sectors: UInt8 = 0
) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 512)
    bytes.replaceSubrange(0..<8, with: Array("conectix".utf8))
    put(UInt32(0x10000), 12, &bytes)
    put(kind == 2 ? UInt64.max : 512, 16, &bytes)
    bytes.replaceSubrange(28..<32, with: Array(creator.utf8))
    put(size, 40, &bytes)
    put(size, 48, &bytes)
    put(cylinders, 56, &bytes)
    (bytes[58], bytes[59]) = (heads, sectors)
    put(kind, 60, &bytes)
    seal(&bytes, at: 64)
    return bytes
}

/// A differencing image with these locators, whose names follow the block table.
private func differencing(
    _ locators: [(code: String, name: [UInt8])], parent: UInt8 = 7, headerName: String = ""
) -> [UInt8] {
    var header = [UInt8](repeating: 0, count: 1024)
    header.replaceSubrange(0..<8, with: Array("cxsparse".utf8))
    put(UInt64(1536), 16, &header)
    put(UInt32(1), 28, &header)
    put(UInt32(2 << 20), 32, &header)
    for index in 0..<16 { header[40 + index] = parent }
    for (index, unit) in headerName.utf16.enumerated() { put(unit, 64 + index * 2, &header) }
    var names: [UInt8] = []
    for (index, locator) in locators.enumerated() {
        let start = 576 + index * 24
        header.replaceSubrange(start..<start + 4, with: Array(locator.code.utf8))
        put(UInt32(512), start + 4, &header)
        put(UInt32(locator.name.count), start + 8, &header)
        put(UInt64(2048 + names.count), start + 16, &header)
        names += locator.name + [UInt8](repeating: 0, count: 512 - locator.name.count)
    }
    seal(&header, at: 36)
    let end = footer(kind: 4, size: 1 << 20)
    return end + header + [UInt8](repeating: 0xff, count: 512) + names + end
}

private func little(_ text: String) -> [UInt8] { text.utf16.flatMap { [UInt8($0 & 255), UInt8($0 >> 8)] } }

@Suite struct VHDTests {
    private func names(_ bytes: [UInt8]) throws -> [String] {
        try VHDImage(ArrayReader(bytes)).parents.map { String(decoding: $0.name, as: UTF8.self) }
    }

    /// Virtual PC and old QEMU go by the geometry; all others by the size, as does everybody where the geometry can say no more.
    @Test func theSizeIsThatOfTheMaker() throws {
        let size: UInt64 = 10 << 20
        for (creator, expected) in [
            ("vpc ", 100 * 4 * 17 * 512), ("qemu", 100 * 4 * 17 * 512), ("win ", size), ("qem2", size),
        ] {
            let end = footer(size: size, creator: creator, cylinders: 100, heads: 4, sectors: 17)
            let image = try VHDImage(ArrayReader([UInt8](repeating: 1, count: Int(size)) + end))
            #expect(image.size == expected, "\(creator)")
        }
        let largest = footer(kind: 3, size: 200 << 30, creator: "vpc ", cylinders: 65535, heads: 16, sectors: 255)
        #expect(try VHDFooter(largest).diskSize == 200 << 30)
    }

    /// 2040 GiB and no more.
    @Test func aDiskHasAtMost2040GiB() throws {
        let end = footer(size: (2040 << 30) + 512)
        #expect { try VHDImage(ArrayReader(end)) } throws: { ($0 as? ImageError)?.kind == .tooLarge }
    }

    /// A guest that writes a footer to its first sector changes nothing of its fixed disk.
    @Test func theFirstSectorOfAFixedDiskIsData() throws {
        let size: UInt64 = 1 << 20
        var bytes = [UInt8](repeating: 0, count: Int(size))
        bytes.replaceSubrange(0..<512, with: footer(kind: 3, size: 4096))
        let image = try VHDImage(ArrayReader(bytes + footer(size: size)))
        #expect(image.footer.kind == .fixed && image.size == size)
    }

    @Test func aDamagedFooterIsReplacedByItsCopy() throws {
        var bytes = differencing([("W2ru", little(".\\base.vhd"))])
        #expect(try VHDImage(ArrayReader(bytes)).hasWholeFooter)
        bytes[bytes.count - 300] ^= 1
        #expect(try !VHDImage(ArrayReader(bytes)).hasWholeFooter)
        bytes[100] ^= 1
        #expect(throws: ImageError.self) { try VHDImage(ArrayReader(bytes)) }
    }

    /// Names from the image's directory come first; each comes once.
    @Test func parentsAreNamedInEachForm() throws {
        let bytes = differencing([
            ("W2ku", little("C:\\srv\\base.vhd")), ("MacX", Array("file://./base.vhd".utf8)),
            ("W2ru", little(".\\base.vhd")), ("Wi2r", little("x")),
        ])
        #expect(try names(bytes) == ["base.vhd", "/srv/base.vhd"])
        #expect(try VHDImage(ArrayReader(bytes)).parents.allSatisfy { $0.format == Array("vhd".utf8) })
        #expect(try names(differencing([("MacX", Array("file:///a/b".utf8))])) == ["/a/b"])
        #expect(try names(differencing([("MacX", Array("file://localhost/a/b".utf8))])) == ["/a/b"])
        #expect(try names(differencing([("W2ru", little("..\\..\\etc\\passwd"))])) == ["../../etc/passwd"])
        #expect(try names(differencing([("W2ru", little("übung\\Ω.vhd"))])) == ["übung/Ω.vhd"])
        #expect(try names(differencing([], headerName: "D:\\VMs\\base.vhd")) == ["base.vhd"])
    }

    /// XenServer gives a raw parent no identifier.
    @Test func aParentWithoutIdentifierIsRaw() throws {
        let image = try VHDImage(ArrayReader(differencing([("W2ru", little("base"))], parent: 0)))
        #expect(image.parents.map(\.format) == [Array("raw".utf8)])
    }

    @Test func namesThatAreNoneAreNoNames() {
        // Half a pair, an odd byte, nothing, no URL, no UTF-8.
        for bytes in [[0x00, 0xd8, 0x41, 0x00], [0x41], [], [0, 0, 0x41, 0]] as [[UInt8]] {
            #expect(ParentName.path(code: Array("W2ru".utf8), bytes) == nil, "\(bytes)")
        }
        #expect(ParentName.path(code: Array("MacX".utf8), Array("http://x/y".utf8)) == nil)
        #expect(ParentName.path(code: Array("MacX".utf8), Array("file://".utf8) + [0xff, 0xfe]) == nil)
        #expect(throws: ImageError.self) { try VHDImage(ArrayReader(differencing([("W2ru", [0, 0xd8])]))) }
    }

    @Test func aFileIsRecognizedByEitherEnd() {
        let (fixed, dynamic) = (footer(size: 4096), footer(kind: 3, size: 4096))
        let none = [UInt8](repeating: 0, count: 512)
        #expect(VHDImage.score(head: none, tail: fixed) == 100)
        #expect(VHDImage.score(head: dynamic, tail: dynamic) == 100)
        #expect(VHDImage.score(head: dynamic, tail: none) == 90)
        // Damaged, or a raw disk that begins so.
        #expect(VHDImage.score(head: fixed, tail: none) == 30)
        #expect(VHDImage.score(head: none, tail: none) == 0)
        #expect(VHDImage.score(head: [], tail: []) == 0)
    }

    /// XenServer marks an image so while vhd-util changes its size.
    @Test func anInterruptedResizeIsRefusedByName() {
        var bytes = differencing([("W2ru", little("base"))])
        for start in [0, bytes.count - 512] { bytes.replaceSubrange(start..<start + 8, with: Array("v_poison".utf8)) }
        #expect { try VHDImage(ArrayReader(bytes)) } throws: { "\($0)".contains("vhd-util revert") }
    }
}
