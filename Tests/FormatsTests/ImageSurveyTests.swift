// SPDX-License-Identifier: BSD-2-Clause
// What a survey counts, beside what qemu-img says of the same image.
import Glibc
import QCOW2
import Testing

@Suite struct ImageSurveyTests {
    /// Data, zeroes, a snapshot with data of its own, and a bitmap: nothing of it is without an owner.
    @Test func whatAnImageConsistsOfIsCounted() throws {
        let folder = try Folder()
        try run(
            """
            cd \(folder.path) && qemu-img create -q -f qcow2 image 64M \
            && qemu-io -c 'write -P 3 0 5M' -c 'write -z 10M 1M' image >/dev/null && qemu-img snapshot -c before image \
            && qemu-io -c 'write -P 4 1M 1M' image >/dev/null && qemu-img bitmap --add image marks \
            && qemu-img check -q image
            """)
        let file = ArrayReader(try folder.bytes("image"))
        let survey = try ImageSurvey(file, try QCOWImage(file))
        #expect(survey.data == 80 && survey.zeroes == 16 && survey.shared == 64 && survey.compressed == 0)
        #expect(survey.leaked == 0 && survey.uncounted == 0 && survey.isComplete)
        #expect(survey.snapshots == [Array("before".utf8)])
    }

    @Test func compressedClustersAndLeaksAreCounted() throws {
        let folder = try Folder()
        try run(
            """
            cd \(folder.path) && yes | head -c 1M >source && qemu-img convert -c -O qcow2 source image \
            && truncate -s 1M image
            """)
        let good = try folder.bytes("image")
        // The refcount of a cluster that nothing refers to; blocks of 16 bits stand where the table says.
        let table = Int(good.number(at: 48, bytes: 8))
        let block = Int(good.number(at: table, bytes: 8))
        let file = ArrayReader(good.patched(block + 14 * 2, [0, 1]))
        let survey = try ImageSurvey(file, try QCOWImage(file))
        #expect(survey.compressed == 16 && survey.data == 16)
        #expect(survey.leaked == 1 && survey.uncounted == 0)
    }
}
