// SPDX-License-Identifier: BSD-2-Clause
// Bytes of an image at places that may be wrong.
import Glibc
import ImageCore
import Testing

@Suite struct ImageCoreTests {
    private func refusal(_ body: () throws(ImageError) -> Void) -> ImageError? {
        do throws(ImageError) {
            try body()
            return nil
        } catch {
            return error
        }
    }

    @Test func numbersAreBigEndian() throws {
        let reader = ByteReader((1...16).map { UInt8($0) })
        #expect(try reader.u8(0) == 0x01 && reader.u16(1) == 0x0203)
        #expect(try reader.u32(4) == 0x0506_0708 && reader.u64(8) == 0x090a_0b0c_0d0e_0f10)
        #expect(reader.slice(14, 2) == [15, 16] && reader.count == 16)
    }

    @Test(arguments: [0, 1, 3, 7, 8] as [Int])
    func nothingBehindTheEndIsRead(count: Int) {
        let reader = ByteReader([UInt8](repeating: 1, count: count))
        for offset in [0, 1, UInt64(count), UInt64(count) + 1, .max - 7, .max] as [UInt64] {
            let isThere = offset < UInt64(count) && UInt64(count) - offset >= 8
            #expect((try? reader.u64(offset)) == (isThere ? 0x0101_0101_0101_0101 : nil))
            #expect(reader.slice(offset, .max).isEmpty)
        }
        let words = refusal { () throws(ImageError) in _ = try reader.u64(1) }
        #expect(words?.message == "the image is damaged: it ends after \(count) bytes, in the middle of its header")
        #expect(words?.kind == .invalid && words?.code == EINVAL)
    }

    @Test func bytesEndWithTheFile() throws {
        let image = ArrayReader([1, 2, 3])
        #expect(try image.bytes(at: 1, count: 100) == [2, 3] && image.bytes(at: 3, count: 1) == [])
        #expect(try image.bytes(at: .max, count: 1) == [] && image.bytes(at: 0, count: 0) == [])
    }

    @Test func whatCannotBeReadIsAnErrorWithItsCode() {
        let image = ArrayReader([1, 2, 3], failure: -EBADF)
        let error = refusal { () throws(ImageError) in _ = try image.bytes(at: 1, count: 2) }
        #expect(error == ImageError(.unreadable(EBADF), "cannot read the image at offset 1") && error?.code == EBADF)
    }

    @Test func onlyWordsThatAreNotZeroAreTold() throws {
        var bytes = [UInt8](repeating: 0, count: 80)
        #expect(try ArrayReader(bytes).nonZeroWords(at: 8, count: 9).isEmpty)
        (bytes[15], bytes[72]) = (7, 1)
        let words = try ArrayReader(bytes).nonZeroWords(at: 8, count: 9)
        #expect(words.map(\.index) == [0, 8] && words.map(\.word) == [7, 1 << 56])
        let cut = refusal { () throws(ImageError) in _ = try ArrayReader(bytes).nonZeroWords(at: 16, count: 9) }
        #expect(cut?.kind == .corrupt && cut?.message == "the image was cut off while it was opened")
    }
}
