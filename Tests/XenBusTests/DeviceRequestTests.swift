// SPDX-License-Identifier: BSD-2-Clause
import Base
import Testing
import XenBus

@Suite struct DeviceRequestTests {
    @Test(arguments: [
        ("/images/disk.img", "/images/disk.img", "raw"),
        ("/images/with:colon.qcow2", "/images/with:colon.qcow2", "raw"),
        ("/qcow2:/x", "/qcow2:/x", "raw"),
        ("raw:/a", "/a", "raw"), ("file:/a", "/a", "raw"), ("aio:/a", "/a", "raw"),
        ("phy:/dev/sda1", "/dev/sda1", "raw"),
        ("phy:vg/lv", "/dev/vg/lv", "raw"),
        ("qcow:/a", "/a", "qcow"), ("qcow2:/a:b:c", "/a:b:c", "qcow2"), ("vhd:/a", "/a", "vhd"),
        ("vhdx:/a", "/a", "vhdx"), ("qed:/a", "/a", "qed"),
        ("qcow2:/bilder/größe.img", "/bilder/größe.img", "qcow2"),
        ("raw://a", "//a", "raw"), ("file:///a", "///a", "raw"),
        // What only the plugin understands.
        ("nbd:host:10809", "host:10809", "nbd"), ("rbd:pool/image", "pool/image", "rbd"), ("qcow2:a", "a", "qcow2"),
        ("nbd://host:10809/export", "nbd://host:10809/export", "nbd"), ("nbd://", "nbd://", "nbd"),
        ("nbd://[2001:db8::1]:10809/a%20b", "nbd://[2001:db8::1]:10809/a%20b", "nbd"),
        ("nbd+unix:///export?socket=/run/s", "nbd+unix:///export?socket=/run/s", "nbd"),
        ("nbd+tls+x.1://h", "nbd+tls+x.1://h", "nbd"), ("nbd:nbd+unix:///x", "nbd+unix:///x", "nbd"),
        ("json:{\"driver\":\"nbd\"}", "{\"driver\":\"nbd\"}", "json"),
        ("rbd:../../etc/shadow", "../../etc/shadow", "rbd"),
        ("rbd: ", " ", "rbd"), ("rbd:größe", "größe", "rbd"), ("null:/", "/", "null"), ("rbd:x:", "x:", "rbd"),
    ])
    func imagesAreToldNeverGuessed(_ params: String, _ path: String, _ format: String) throws {
        let image = try ImageLocation(parsing: params)
        #expect(image.path == path)
        #expect(image.format.name == format)
    }

    @Test(arguments: [
        ("", NegotiationError.Rule.noImage), ("aio:", .noImage), ("qcow2:", .noImage),
        ("disk.img", .unknownFormatPrefix), (":/a", .unknownFormatPrefix), ("://a", .unknownFormatPrefix),
        ("+unix:///a", .unknownFormatPrefix), ("nbd+unix:/a", .unknownFormatPrefix), ("NBD://a", .unknownFormatPrefix),
        ("nbd+Unix://a", .unknownFormatPrefix), ("nbd,a=b:x", .unknownFormatPrefix), ("nbd", .unknownFormatPrefix),
        (String(repeating: "a", count: 33) + ":x", .unknownFormatPrefix), ("nbd:", .noImage), ("null:", .noImage),
        ("rbd:" + String(repeating: "a", count: 1025), .tooLong(maximum: 1024)), ("rbd:a\nb", .notText),
        ("rbd:a\u{7f}", .notText), ("nbd://\u{85}", .notText), ("rbd:\u{2028}", .notText),
        ("QCOW2:/a", .unknownFormatPrefix), (" raw:/a", .unknownFormatPrefix), ("sda1", .unknownFormatPrefix),
        ("raw:a", .notAnImagePath), ("raw:../a", .notAnImagePath), ("phy:../etc/shadow", .notAnImagePath),
        ("phy:a/../../etc/shadow", .notAnImagePath),
    ])
    func otherTextIsAnError(_ params: String, _ rule: NegotiationError.Rule) {
        let error = #expect(throws: NegotiationError.self) { try ImageLocation(parsing: params) }
        #expect(error?.rule == rule)
        #expect(error?.key == "params")
    }

    @Test func formatNames() throws {
        #expect(try ImageFormat(parsing: "qcow2", key: "xbb-format") == .qcow2)
        #expect(try ImageFormat(parsing: "null", key: "xbb-format").name == "null")
        for text in ["", "../x", "a b", "RAW", "a/b", String(repeating: "a", count: 33), "ä"] {
            let error = #expect(throws: NegotiationError.self) { try ImageFormat(parsing: text, key: "xbb-format") }
            #expect(error?.rule == .notAFormatName)
        }
    }

    @Test func deviceNumbersAreHexadecimal() throws {
        #expect(try DeviceNumber(parsing: "fd:1a") == DeviceNumber(major: 0xfd, minor: 0x1a))
        #expect(try DeviceNumber(parsing: "7:FFFFFFFF") == DeviceNumber(major: 7, minor: .max))
        for text in ["", ":", "7", "7:", ":7", "7:1:2", "-7:1", "+7:1", "7: 1", "100000000:1", "g:1", "٣:1"] {
            let error = #expect(throws: NegotiationError.self) { try DeviceNumber(parsing: text) }
            #expect(error?.rule == .notADeviceNumber)
        }
    }
}
