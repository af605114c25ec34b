// SPDX-License-Identifier: BSD-2-Clause
// `xbbctl inspect --compare`: an image through both readers, in a process that has no right but to read it.
import Foundation
import Support
import Testing

extension EndToEnd {
    @Suite struct ReaderComparisonTests {
        /// The answer and the exit status.
        private func compare(_ lab: QCOWLab, _ name: String, _ more: String = "") throws -> (JSON, Int) {
            let text = try lab.run(
                "\(buildDirectory)/xbbctl inspect \(name) --compare --json --plugin-dir \(lab.lab.plugins) \(more) "
                    + "--state-dir \(lab.lab.directory)/state; echo $?")
            let lines = text.split(separator: "\n")
            return (
                try #require(try JSON(parsing: String(lines[0]))["comparison"], "\(text)"), Int(lines.last ?? "") ?? -1
            )
        }

        /// Every kind that libqcow reads: what it gets wrong is told apart.
        @Test func wholeImagesReadTheSame() throws {
            let lab = try QCOWLab()
            try lab.run(
                """
                head -c 3000000 /dev/urandom > raw && truncate -s 5M raw && head -c 300000 /dev/zero >> raw
                qemu-img convert -O qcow2 raw plain && qemu-img convert -c -O qcow2 raw deflated
                qemu-img convert -O qcow2 -o cluster_size=512 raw small && qemu-img convert -O qcow raw old
                qemu-img convert -O qcow2 -o cluster_size=2M,compat=0.10 raw large
                qemu-img create -q -f qcow2 -b plain -F qcow2 top && qemu-io -f qcow2 -c 'write -P 5 1M 192k' top
                """)
            for name in ["plain", "deflated", "small", "old", "large", "top"] {
                let (found, status) = try compare(lab, name)
                #expect(found["verdict"]?.string == "same" && status == 0, "\(name): \(found)")
                // What is below an image is not compared, and not counted.
                #expect(found["compared"]?.unsigned == (name == "top" ? 192 << 10 : 5_542_912), "\(name): \(found)")
            }
            // What is below the image is the backing file's.
            let (top, _) = try compare(lab, "top")
            #expect(top["not_compared"]?.elements.first?["bytes"]?.unsigned == 5_542_912 - 192 << 10, "\(top)")
            try lab.run("qemu-io -f qcow2 -c 'write -z 1M 64k' -c 'write -zu 2M 128k' plain")
            let (zeroes, status) = try compare(lab, "plain")
            #expect(zeroes["verdict"]?.string == "known-faults" && status == 0, "\(zeroes)")
            #expect(zeroes["known_faults"]?.elements.allSatisfy { $0["fault"]?.string == "zero-cluster" } == true)
            #expect(zeroes["known_faults"]?.elements.first?["offset"]?.unsigned == 1 << 20, "\(zeroes)")
            try lab.lab.finish()
        }

        /// What one reader gives and the other does not is a difference, with its place on the disk, unless libqcow is known for it.
        @Test func differencesAreNamedWithTheirPlace() throws {
            let lab = try QCOWLab()
            try lab.run(
                """
                head -c 1M /dev/urandom > raw && qemu-img convert -c -O qcow2 raw short && qemu-img convert -O qcow2 raw cut
                yes text | head -c 1M > raw && qemu-img convert -c -O qcow2 raw broken
                truncate -s $(($(stat -c %s cut) - 65536)) cut
                """)
            // A cluster that the file cuts off: libqcow would read from behind a buffer.
            let (cut, status) = try compare(lab, "cut")
            #expect(cut["verdict"]?.string == "known-faults" && status == 0, "\(cut)")
            #expect(cut["known_faults"]?.elements.first?["fault"]?.string == "cut-off")
            #expect(cut["compared"]?.unsigned == 15 << 16, "what libqcow is not asked for is not compared: \(cut)")
            // The first deflated cluster ends too early: half of its bytes are those of the header then.
            let table = try Data(contentsOf: URL(fileURLWithPath: "\(lab.templates)/broken"))
            func number(_ offset: Int) -> Int { table[offset..<offset + 8].reduce(0) { $0 << 8 | Int($1) } }
            let stream = number(number(number(40)) & 0x00ff_ffff_ffff_fe00) & (1 << 54 - 1)
            try lab.run("printf '\\003\\000' | dd of=broken bs=1 seek=\(stream) conv=notrunc")
            let (broken, code) = try compare(lab, "broken")
            #expect(["known-faults", "same"].contains(broken["verdict"]?.string) && code == 0, "\(broken)")
            #expect(
                broken["known_faults"]?.elements.first?["fault"]?.string == "short-stream"
                    || broken["not_compared"]?.elements.first?["reason"]?.string == "neither reader can read it",
                "\(broken)")
            // libqcow believes that a disk has the bytes that its header says; whole sectors are served. Text has the same.
            try lab.run(
                """
                qemu-img convert -O qcow2 raw odd && printf '\\000\\020\\001\\001' | dd of=odd bs=1 seek=28 conv=notrunc
                """)
            let (odd, _) = try compare(lab, "odd")
            #expect(odd["compared"]?.unsigned == 0x100000 + 256 & ~511 || odd["verdict"]?.string != nil, "\(odd)")
            try lab.lab.finish()
        }

        /// An image that libqcow cannot read is said to be so, by what it has.
        @Test func whatLibqcowCannotReadIsNamed() throws {
            let lab = try QCOWLab()
            try lab.run(
                """
                qemu-img create -q -f qcow2 -o extended_l2=on sub 1M
                qemu-img create -q -f qcow2 -o compression_type=zstd zstd 1M
                qemu-img create -q -f qcow2 -o data_file=raw.data data 1M
                truncate -s 1M nothing
                # qemu-img measures how fast the processor is, and gives up where it has too little of it.
                for round in $(seq 20); do
                    qemu-img create -q --object secret,id=s,data=abc -f qcow2 \
                        -o encrypt.format=luks,encrypt.key-secret=s luks 1M && break
                done
                """)
            for (name, words) in [
                ("sub", "extended L2 entries"), ("zstd", "zstd compression"), ("data", "external data file"),
                ("luks", "LUKS"),
            ] {
                let (found, status) = try compare(lab, name)
                #expect(found["verdict"]?.string == "unreadable" && status == 1, "\(name): \(found)")
                #expect(found["reason"]?.string?.contains(words) == true, "\(name): \(found)")
            }
            let text = try lab.run(
                "\(buildDirectory)/xbbctl inspect nothing --format raw --compare --plugin-dir \(lab.lab.plugins); echo $?"
            )
            #expect(text.contains("nothing to be read in two ways") && text.hasSuffix("1"), "\(text)")
            try lab.lab.finish()
        }
    }
}
