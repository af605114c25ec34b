// SPDX-License-Identifier: BSD-2-Clause
// Plugins that were built for an older version of the ABI, and are kept as they were built then, serve disks.
import Foundation
import Testing

extension EndToEnd {
    @Suite struct GoldenPluginTests {
        /// Every library that was ever put in Tests/ABI/golden.
        static let libraries: [String] = {
            let folder = "\(packageDirectory)/Tests/ABI/golden"
            let names = FileManager.default.enumerator(atPath: folder)?.compactMap { $0 as? String } ?? []
            return names.filter { $0.hasSuffix(".so") }.sorted()
        }()

        @Test func thereAreThreeOfTheFirstVersion() {
            let first = Self.libraries.filter { $0.hasPrefix("1.0/") }
            #expect(first == ["1.0/xbb-golden-c.so", "1.0/xbb-golden-rust.so", "1.0/xbb-golden-swift.so"])
            #expect(Self.libraries.contains("1.1/xbb-golden-c.so"))
        }

        @Test(arguments: libraries) func itServesADisk(_ library: String) throws {
            let lab = try Lab()
            let file = (library as NSString).lastPathComponent
            let name = String(file.dropFirst("xbb-".count).dropLast(".so".count))
            let copy = "\(lab.plugins)/\(file)"
            try FileManager.default.copyItem(atPath: "\(packageDirectory)/Tests/ABI/golden/\(library)", toPath: copy)
            chmod(copy, 0o755)

            let disk = try lab.attach(51712, .plugin(name, "size=32M"))
            let device = try disk.connect { $0.ringPages = 4 }
            #expect(device.info.sectors == 65536)
            let report = try disk.load(device) { $0.count = 2000 }
            #expect(report.isGood && report.verifiedBlocks > 0, "\(report.text)")
            try device.close()
            try lab.finish()
        }
    }
}
