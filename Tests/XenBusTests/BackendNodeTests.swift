// SPDX-License-Identifier: BSD-2-Clause
import Base
import Testing
import XenBus

@Suite struct BackendNodeTests {
    /// As libxl 4.17 writes it for script=.
    static let libxlPhy: Node = [
        "frontend": "/local/domain/3/device/vbd/51712", "frontend-id": "3", "params": "qcow2:/img",
        "script": "/etc/xen/scripts/block-xbb", "online": "1", "removable": "0", "bootable": "1", "state": "1",
        "dev": "xvda", "type": "phy", "mode": "w", "device-type": "disk", "discard-enable": "1",
    ]

    static func request(_ change: Node, from source: StorageSource = .hotplug) throws -> DeviceRequest? {
        let node = libxlPhy.merging(change) { $1 }
        return try BackendNode(read: reader(node)).deviceRequest(from: source)
    }

    @Test func readsWhatLibxlWrites() throws {
        let node = try BackendNode(read: reader(Self.libxlPhy))
        #expect(node.frontendPath == "/local/domain/3/device/vbd/51712")
        #expect(node.frontendID == 3)
        #expect(node.state == .initialising)
        #expect(node.isOnline)
        #expect(node.isReadOnly == false)
        #expect(node.script == "/etc/xen/scripts/block-xbb")
        #expect(node.virtualDevice == "xvda")
        #expect(node.type == "phy")
        #expect(node.hotplugStatus == nil)
        #expect(try node.deviceRequest(from: .hotplug) == nil, "the script has not run yet")
    }

    @Test func hotplugScriptTellsPathAndFormat() throws {
        let found = try #require(
            try Self.request([
                "physical-device": "7:0", "physical-device-path": "/dev/loop0", "direct-io-safe": "1",
                "device-type": "cdrom", "removable": "1", "mode": "r", "discard-enable": "0",
            ]))
        #expect(found.image == ImageLocation(path: "/dev/loop0", format: .raw))
        #expect(found.deviceNumber == DeviceNumber(major: 7, minor: 0))
        #expect(found.isReadOnly && found.isRemovable && !found.mayDiscard)
        #expect(found.deviceType == .cdrom)
        let image = try Self.request(["physical-device-path": "/img", "xbb-format": "qcow2"])?.image
        #expect(image == ImageLocation(path: "/img", format: .qcow2))
        #expect(try Self.request(["physical-device-path": "vg/lv"])?.image.path == "/dev/vg/lv")
    }

    @Test func optionsStandInTheirKeyOrInFrontOfTheLocation() throws {
        func options(_ change: Node) throws -> [String: String] {
            try BackendNode(read: reader(Self.libxlPhy.merging(change) { $1 })).options
        }
        #expect(try options([:]) == [:])
        #expect(
            try options(["params": "qcow2,max-queues=2,sparse:/a,b=c:d"]) == ["max-queues": "2", "sparse": "on"])
        #expect(try options(["params": "raw,a=1:/disk", "xbb-options": "b=2=3,b=4"]) == ["b": "4"])
        for params in ["/a,b=c:/d", "raw", "raw,a=1", "nbd://host/a,b=c", ":", ",:", ""] {
            #expect(try options(["params": params]) == [:], "\(params)")
        }
    }

    @Test func whatAFormatsLocationIsIsNotJudged() throws {
        for (format, location) in [
            ("nbd", "nbd://[::1]:10809/export"), ("rbd", "pool/image"), ("rbd", "../image"), ("null", "/"),
            ("rbd", String(repeating: "a", count: 1024)), ("qcow2", "/" + String(repeating: "a", count: 2000)),
        ] {
            let image = try Self.request(["physical-device-path": location, "xbb-format": format])?.image
            #expect(image?.path == location && image?.format.name == format)
        }
        for (location, rule) in [
            (String(repeating: "a", count: 1025), NegotiationError.Rule.tooLong(maximum: 1024)), ("a\u{85}", .notText),
            ("", .noImage),
        ] {
            #expect(throws: NegotiationError(rule, key: "physical-device-path", value: Array(location.utf8))) {
                try Self.request(["physical-device-path": location, "xbb-format": "rbd"])
            }
        }
        // Raw is XBB's own.
        #expect(throws: NegotiationError(.notAnImagePath, key: "physical-device-path", value: Array("../a".utf8))) {
            try Self.request(["physical-device-path": "../a", "xbb-format": "raw"])
        }
    }

    @Test func paramsTellItWhereNoScriptRuns() throws {
        #expect(try Self.request([:], from: .params)?.image == ImageLocation(path: "/img", format: .qcow2))
        #expect(StorageSource(kind: "qdisk") == .params)
        #expect(StorageSource(kind: "vbd") == .hotplug)
        #expect(StorageSource(kind: "vbd3") == .hotplug)
    }

    @Test func modesAreTheKnownOnes() throws {
        for (mode, isReadOnly) in ["r": true, "ro": true, "r!": true, "w": false, "rw": false, "w!": false] {
            #expect(try Self.request(["physical-device-path": "/d", "mode": mode])?.isReadOnly == isReadOnly)
        }
    }

    @Test func modeIsMandatoryOnceTheStorageIsKnown() throws {
        var node = Self.libxlPhy
        node["mode"] = nil
        #expect(try BackendNode(read: reader(node)).deviceRequest(from: .hotplug) == nil)
        node["physical-device-path"] = "/dev/sda"
        #expect(throws: NegotiationError(.missing, key: "mode")) {
            try BackendNode(read: reader(node)).deviceRequest(from: .hotplug)
        }
    }

    @Test func defaultsOfAHandMadeNode() throws {
        let node = try BackendNode(read: reader(["frontend": "/local/domain/0/device/vbd/1", "frontend-id": "0"]))
        #expect(node.isOnline, "a missing key is no wish to detach")
        #expect(node.state == nil)
        #expect(node.mayDiscard)
        #expect(!node.isRemovable)
        #expect(node.deviceType == .disk)
        #expect(node.isReadOnly == nil && node.params == nil && node.publishedSectorCount == nil)
        #expect(try node.deviceRequest(from: .params) == nil)
    }

    @Test(arguments: [
        ("frontend-id", "32752", NegotiationError.Rule.numberTooLarge(maximum: 0x7fef)),
        ("frontend-id", "x", .notDecimal),
        ("frontend", "/local/domain/30/device/vbd/51712", .notAFrontendPath),
        ("frontend", "/local/domain/3", .notAFrontendPath),
        ("frontend", "/local/domain/3/", .notAFrontendPath),
        ("frontend", "/local/domain/3//device", .notAFrontendPath),
        ("frontend", "/local/domain/3/device/vbd/", .notAFrontendPath),
        ("frontend", "/local/domain/3/device/../../0/x", .notAFrontendPath),
        ("frontend", "device/vbd/51712", .notAFrontendPath),
        ("frontend", "/local/domain/3/" + String(repeating: "a", count: 3072), .tooLong(maximum: 3072)),
        ("online", "yes", .notDecimal),
        ("removable", "-1", .notDecimal),
        ("mode", "x", .unknownMode),
        ("mode", "", .unknownMode),
        ("params", "a\u{7}b", .notText),
        ("physical-device", "7", .notADeviceNumber),
        ("xbb-format", "../x", .notAFormatName),
        ("sectors", "18446744073709551616", .numberTooLarge(maximum: .max)),
    ])
    func brokenRulesAreNamed(_ key: String, _ value: String, _ rule: NegotiationError.Rule) {
        let error = #expect(throws: NegotiationError.self) { try Self.request([key: value]) }
        #expect(error?.rule == rule)
        #expect(error?.key == key)
    }

    @Test(arguments: ["frontend", "frontend-id"]) func mandatoryKeys(_ key: String) {
        var node = Self.libxlPhy
        node[key] = nil
        #expect(throws: NegotiationError(.missing, key: key)) { try BackendNode(read: reader(node)) }
    }

    @Test func onlyAZeroIsAWishToDetach() throws {
        for (text, isOnline) in ["0": false, "00": false, "1": true, "2": true, "01": true] {
            #expect(BackendNode.isOnline(reading: Array(text.utf8)) == isOnline)
            let node = try BackendNode(read: reader(Self.libxlPhy.merging(["online": text]) { $1 }))
            #expect(node.isOnline == isOnline)
        }
        #expect(BackendNode.isOnline(reading: nil))
        for value in hostileValues { #expect(BackendNode.isOnline(reading: value)) }
    }

    @Test func emptyDriveIsAnErrorOfItsOwn() {
        #expect(throws: NegotiationError(.noImage, key: "physical-device-path", value: [])) {
            try Self.request(["physical-device-path": ""])
        }
        #expect(throws: NegotiationError(.noImage, key: "params", value: Array("aio:".utf8))) {
            try Self.request(["params": "aio:"], from: .params)
        }
    }

    @Test func anyKeyWithAnyHostileValueIsAValueOrATypedError() throws {
        let keys = Array(Self.libxlPhy.keys) + ["physical-device", "physical-device-path", "xbb-format", "sectors"]
        for key in keys {
            for value in hostileValues {
                do throws(NegotiationError) {
                    let node = try BackendNode { name in
                        #expect(BackendNode.keys.contains(name))
                        return name == key ? value : Self.libxlPhy[name].map { Array($0.utf8) }
                    }
                    _ = try node.deviceRequest(from: .hotplug)
                    _ = try node.deviceRequest(from: .params)
                } catch {
                    #expect(!error.description.isEmpty)
                }
            }
        }
    }
}
