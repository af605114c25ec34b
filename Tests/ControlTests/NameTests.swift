// SPDX-License-Identifier: BSD-2-Clause
import PluginHost
import TestSupport
import Testing

@testable import XBBControl

@Suite struct NameTests {
    @Test(
        "names of virtual devices have libxl's numbers",
        arguments: [
            ("xvda", 51712), ("xvdb", 51728), ("xvda1", 51713), ("xvda15", 51727), ("xvdp", 51952), ("xvdp15", 51967),
            ("xvdq", 1 << 28 | 16 << 8), ("xvdz", 1 << 28 | 25 << 8), ("xvdaa", 1 << 28 | 26 << 8),
            ("xvda16", 1 << 28 | 16), ("xvdq3", 1 << 28 | 16 << 8 | 3), ("xvdbcd255", 1 << 28 | 1433 << 8 | 255),
            ("d0p0", 51712), ("d0p1", 51713), ("d16p0", 1 << 28 | 16 << 8), ("d1048575p255", 0x1fff_ffff),
            ("hda", 768), ("hda63", 831), ("hdb", 832), ("hdc", 5632), ("hdd", 5696), ("hdd1", 5697),
            ("sda", 2048), ("sda1", 2049), ("sdb", 2064), ("sdp15", 2303),
            ("0", 0), ("51712", 51712), ("0xca00", 51712), ("0145000", 51712), ("2147483647", 2_147_483_647),
        ] as [(String, UInt32)])
    func numberOfName(_ name: String, _ number: UInt32) {
        #expect(VirtualDevice.number(of: name) == number)
    }

    @Test(
        "what libxl refuses is refused",
        arguments: [
            "", "xvd", "xvdA", "xvda0", "xvda01", "xvda256", "xvda-1", "xvda 1", "xvda1p1", "hde", "hda64", "sdq",
            "sda16", "vda", "d0", "d0p", "d0p256", "d1048576p0", "-1", "+1", "2147483648", "0x", "0x80000000", "08",
            "99999999999999999999", "xvd" + String(repeating: "z", count: 1000), "xvda1\n", "dp1", "d1p-1",
        ])
    func refusedName(_ name: String) {
        #expect(VirtualDevice.number(of: name) == nil)
    }

    @Test("a device's name leads back to its number") func roundTrip() {
        var numbers = Array(UInt32(0)..<0x10000) + Array(UInt32(1 << 28)..<(1 << 28) + 0x4000)
        var random = SplitMix64(seed: 7)
        for _ in 0..<20000 { numbers.append(UInt32.random(in: 0...UInt32(Int32.max), using: &random)) }
        for number in numbers { #expect(VirtualDevice.number(of: VirtualDevice.name(of: number)) == number) }
    }

    @Test("usual names") func names() {
        #expect(VirtualDevice.name(of: 51712) == "xvda")
        #expect(VirtualDevice.name(of: 51729) == "xvdb1")
        #expect(VirtualDevice.name(of: 1 << 28 | 26 << 8) == "xvdaa")
        #expect(VirtualDevice.name(of: 768) == "hda")
        #expect(VirtualDevice.name(of: 5696) == "hdd")
        #expect(VirtualDevice.name(of: 2064) == "sdb")
        #expect(VirtualDevice.name(of: 5) == "5")
    }

    @Test(
        "directory names that are no VBD",
        arguments: [
            ("vbd", "1", "a"), ("vbd", "1", "01"), ("vbd", "01", "1"), ("vbd", "", "1"), ("vbd", "1", ""),
            ("vbd", "-1", "1"), ("vbd", "+1", "1"), ("vbd", " 1", "1"), ("vbd", "32752", "1"), ("vbd", "65537", "1"),
            ("vbd", "1", "2147483648"), ("vbd", "1", "18446744073709551617"), ("vb/d", "1", "1"), ("", "1", "1"),
            ("1vbd", "1", "1"), ("..", "1", "1"), ("vbd\n", "1", "1"), ("vbd", "1\0", "1"), ("vbd", "١", "1"),
        ])
    func refusedAddress(_ kind: String, _ domain: String, _ device: String) {
        #expect(VBDAddress(kind: kind[...], domain: domain[...], device: device[...]) == nil)
    }

    @Test("the paths of a VBD") func paths() throws {
        let address = try #require(VBDAddress(kind: "qdisk", domain: 7, device: 51712))
        #expect(address.backendPath(own: 3) == "/local/domain/3/backend/qdisk/7/51712")
        #expect(address.frontendPath == "/local/domain/7/device/vbd/51712")
        #expect(address.toolstackPath == "/libxl/7/device/vbd/51712")
        #expect(address.errorPath(own: 3) == "/local/domain/3/error/backend/qdisk/7/51712")
        #expect(VBDAddress(kind: "vbd", domain: "0", device: "0")?.fileName == "vbd-0-0")
    }

    @Test("how a request names a VBD") func references() throws {
        let short = try #require(VBDReference(parsing: "1/51712"))
        let long = try #require(VBDReference(parsing: "vbd3/1/51712"))
        let vbd = try #require(VBDAddress(kind: "vbd", domain: 1, device: 51712))
        let vbd3 = try #require(VBDAddress(kind: "vbd3", domain: 1, device: 51712))
        #expect(short.matches(vbd) && short.matches(vbd3) && !long.matches(vbd) && long.matches(vbd3))
        #expect(short.description == "1/51712" && long.description == "vbd3/1/51712")
        for text in ["", "1", "1/", "/1", "a/b/1/2", "/1/2", "1/2/3/4", "vbd/1/x"] {
            #expect(VBDReference(parsing: text) == nil, "\(text)")
        }
    }
}
