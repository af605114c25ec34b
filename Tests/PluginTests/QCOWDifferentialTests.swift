// SPDX-License-Identifier: BSD-2-Clause
// Images that fuzzing has found interesting, read by the plugin and by QEMU: where both read all of one, they read the same.
import Foundation
import Testing

@Suite struct QCOWDifferentialTests {
    private static let corpus = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("Fuzz/Corpus/qcow-read")

    @Test func keptInputsReadAsQEMUReadsThem() throws {
        let folder = TemporaryFolder()
        let (image, ours, theirs) = (folder.file("image", size: 0), "\(folder.path)/ours", "\(folder.path)/theirs")
        var (same, alone, refused) = (0, 0, 0)
        let inputs = try FileManager.default.contentsOfDirectory(atPath: Self.corpus.path).sorted()
        #expect(inputs.count > 10)
        for input in inputs {
            let bytes = try Data(contentsOf: Self.corpus.appendingPathComponent(input))
            // What Tests/Fuzz/Image/ReadTarget.swift makes of an input: the file may go on with zeroes.
            guard let flags = bytes.first, bytes.count > 80 else { continue }
            try bytes.dropFirst().write(to: URL(fileURLWithPath: image))
            if flags & 15 != 0 { truncate(image, max(off_t(bytes.count - 1), 1 << (9 + off_t(flags & 15)))) }
            // The first byte of the version decides the format; the disk's size stands where the version says.
            let format = bytes[bytes.startIndex + 8] == 1 ? "qcow" : "qcow2"
            let read = shell("timeout 20 \(buildFolder)/qcow-read \(library("qcow")) \(format) \(image) \(ours)")
            #expect([0, 1, 2].contains(read.status), "\(input): \(read.output)")
            // QEMU would open what the image names.
            guard read.status == 0, read.output.contains("refs=0") else {
                refused += 1
                continue
            }
            let convert = shell("timeout 20 qemu-img convert -f \(format) -O raw \(image) \(theirs)")
            guard convert.status == 0 else {
                alone += 1
                continue
            }
            let compared = shell("cmp \(ours) \(theirs)")
            #expect(compared.status == 0, "\(input): \(compared.output) \(read.output)")
            same += 1
        }
        print(
            "qcow2 differential: \(same) read the same, \(refused) refused or with faults, \(alone) read by the plugin alone"
        )
        #expect(same > 5)
    }
}
