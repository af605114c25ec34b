// SPDX-License-Identifier: BSD-2-Clause
import PluginHost
import Base
import Support
import Testing
import Xen
import XenBus

@testable import XBBControl

@Suite struct ToolstackTests {
    private func request(
        _ image: String = "raw:/disk.img", kind: String = "vbd", isReadOnly: Bool = false, options: [String] = []
    ) throws -> AttachRequest {
        AttachRequest(
            address: try #require(VBDAddress(kind: kind, domain: 1, device: 51712)), deviceName: "xvda",
            disk: try DiskSpecification(parsing: image, workingDirectory: "/here"), isReadOnly: isReadOnly,
            options: try PluginOptions(options))
    }

    @Test("the nodes are those that libxl makes, and stand with libxl's rights") func nodes() throws {
        let lab = try DaemonLab()
        let request = try request("qcow2:/a:b.qcow2", isReadOnly: true)
        let nodes = DeviceNodes(request, own: 0)
        try lab.store.transaction { (transaction) throws(OperationError) in
            try nodes.write(to: lab.store, in: transaction)
        }
        let common = [
            "params=qcow2:/a:b.qcow2", "script=/etc/xen/scripts/block-xbb", "frontend-id=1", "online=1", "removable=0",
            "bootable=1", "state=1", "dev=xvda",
            "type=phy", "mode=r", "device-type=disk", "discard-enable=0", "specification=xen",
        ]
        let expected = [
            "/local/domain/0/backend/vbd/1/51712": ["frontend=/local/domain/1/device/vbd/51712"] + common,
            "/libxl/1/device/vbd/51712": [
                "frontend=/local/domain/1/device/vbd/51712", "backend=/local/domain/0/backend/vbd/1/51712",
            ] + common,
            "/local/domain/1/device/vbd/51712": [
                "backend=/local/domain/0/backend/vbd/1/51712", "backend-id=0", "state=1", "virtual-device=51712",
                "device-type=disk", "trusted=1",
            ],
        ]
        for (path, entries) in expected {
            var found: [String] = []
            for key in try lab.store.list(path, in: .none) {
                found.append("\(key)=\(try lab.store.text("\(path)/\(key)") ?? "-")")
            }
            #expect(found.sorted() == entries.sorted())
        }
        for path in [nodes.backendPath, nodes.backendPath + "/params"] {
            #expect(
                try lab.store.permissions(of: path, in: .none) == [
                    XenStorePermission(domain: 0, read: false, write: false),
                    XenStorePermission(domain: 1, read: true, write: false),
                ])
        }
        for path in [nodes.frontendPath, nodes.frontendPath + "/state"] {
            #expect(
                try lab.store.permissions(of: path, in: .none) == [
                    XenStorePermission(domain: 1, read: false, write: false),
                    XenStorePermission(domain: 0, read: true, write: false),
                ])
        }
        // What was written is what the worker's own reading wants.
        let node = try BackendNode { key in try? lab.store.read("\(nodes.backendPath)/\(key)", in: .none) }
        #expect(node.isReadOnly == true && node.frontendID == 1 && node.state == .initialising && node.isOnline)
    }

    @Test("what the hotplug script would write") func hotplug() throws {
        #expect(
            DeviceNodes.hotplug(try request("null:", options: ["size=1G", "sparse=on"])) == [
                .init("xbb-format", "null"), .init("physical-device-path", "/"),
            ])
        // Queues are offered before the storage is known.
        let nodes = DeviceNodes(try request("null:", options: ["size=1G", "max-queues=2"]), own: 3)
        #expect(nodes.backend.contains(.init("xbb-options", "size=1G,max-queues=2")))
        #expect(!(nodes.frontend + nodes.toolstack).contains { $0.key == "xbb-options" })
        #expect(
            DeviceNodes.hotplug(try request("raw:disk.img")) == [
                .init("xbb-format", "raw"), .init("physical-device-path", "/here/disk.img"),
            ])
        #expect(DeviceNodes.hotplug(try request(kind: "qdisk")) == [])
        let qdisk = DeviceNodes(try request(kind: "qdisk"), own: 3).backend
        #expect(qdisk.contains(.init("type", "qdisk")) && !qdisk.contains { $0.key == "script" })
    }

    @Test(
        "what is no disk",
        arguments: [
            "", "raw", "/disk.img", ":/disk", "RAW:/disk", "raw :/disk", ",a=b:/disk", "raw:/a\nb", "raw:/\u{7f}",
        ])
    func noDisk(_ text: String) {
        #expect(throws: ControlError.self) { try DiskSpecification(parsing: text, workingDirectory: "/") }
    }

    @Test("options stand behind the format as in a target of block-xbb") func optionsInDisk() throws {
        let disk = try DiskSpecification(parsing: "null,size=1G,sparse=on:/a,b:c", workingDirectory: "/")
        #expect(disk.format.name == "null" && disk.path == "/a,b:c" && disk.options == ["size=1G", "sparse=on"])
        #expect(throws: ControlError.self) {
            try PluginOptions(try DiskSpecification(parsing: "null,:", workingDirectory: "/").options)
        }
    }

    @Test(
        "what is behind the format is a path or what the plugin says",
        arguments: [
            ("rbd:pool/image", "pool/image", "rbd:pool/image"), ("rbd:", "", "rbd:"), ("rbd:/a", "/a", "rbd:/a"),
            ("rbd://[::1]:1/a", "rbd://[::1]:1/a", "rbd://[::1]:1/a"), ("rbd,a=b:x:y", "x:y", "rbd:x:y"),
            ("rbd+unix,a=b:///a", "rbd+unix:///a", "rbd+unix:///a"), ("rbd:../a", "../a", "rbd:../a"),
            ("qcow2:a", "/here/a", "qcow2:/here/a"), ("qcow2://a", "//a", "qcow2://a"),
            ("raw:a", "/here/a", "raw:/here/a"),
            ("raw://a", "//a", "raw://a"),
        ])
    func locations(_ text: String, _ location: String, _ target: String) throws {
        let kinds = LocationKinds(
            try JSON(
                parsing: """
                    {"plugins":[{"name":"a","formats":["rbd","raw","qcow2"],"location":"opaque"},{"name":"b"},
                    {"name":"qcow2","formats":["qcow2"],"location":"file","needs_file":false},
                    {"name":"old","formats":["old"],"needs_file":false}]}
                    """))
        let disk = try DiskSpecification(parsing: text, workingDirectory: "/here", isOpaque: kinds.isOpaque)
        #expect(disk.path == location && disk.target == target)
        #expect(kinds.isOpaque("old") && !kinds.isOpaque("other"))
        // What is written is what a worker reads, but for nothing, which `params` cannot say.
        guard !location.isEmpty else { return }
        #expect(try ImageLocation(parsing: target).format == disk.format)
    }

    @Test("without an answer a location is a path; params name no empty drive") func unknownLocations() throws {
        let disk = try DiskSpecification(parsing: "rbd:pool/image", workingDirectory: "/here")
        #expect(disk.path == "/here/pool/image")
        #expect(DeviceNodes(try request("null:", kind: "qdisk"), own: 0).backend.contains(.init("params", "null:/")))
        #expect(DeviceNodes(try request("null:"), own: 0).backend.contains(.init("params", "null:")))
        for text in ["rbd:a\u{85}", "rbd:" + String(repeating: "a", count: 1025), "rbd+X://a", "+x://a"] {
            #expect(throws: ControlError.self) {
                try DiskSpecification(parsing: text, workingDirectory: "/", isOpaque: { _ in true })
            }
        }
    }

    @Test("what is no option", arguments: ["", "a", "=b", "a=b,c", "a b=c", "a=\n", "a/b=c", "é=1"])
    func noOption(_ text: String) {
        #expect(throws: ControlError.self) { try PluginOptions([text]) }
    }

    @Test("options are bounded") func manyOptions() throws {
        #expect(throws: ControlError.self) { try PluginOptions(Array(repeating: "key=value", count: 1000)) }
        #expect(try PluginOptions(["a-b_c.9=", "x=a=b"]).text == "a-b_c.9=,x=a=b")
    }

    private func failure(_ body: () throws(ControlError) -> Void) -> ControlError? {
        do throws(ControlError) {
            try body()
            return nil
        } catch {
            return error
        }
    }

    private func expectNothing(of address: VBDAddress, in lab: DaemonLab) throws {
        for path in [
            address.backendPath(own: 0), address.frontendPath, address.toolstackPath, "/local/domain/0/backend/vbd/1",
        ] {
            #expect(throws: OperationError.self, "\(path)") { try lab.store.list(path, in: .none) }
        }
    }

    @Test("a guest that is not there gets no disk") func noGuest() throws {
        let lab = try DaemonLab()
        let toolstack = try Toolstack(store: lab.store)
        var request = try request()
        request.address = try #require(VBDAddress(kind: "vbd", domain: 9, device: 51712))
        let error = failure { () throws(ControlError) in try toolstack.attach(request) }
        #expect(error?.description == "domain 9 does not exist")
        #expect(throws: OperationError.self) { try lab.store.list("/local/domain/0/backend", in: .none) }
    }

    @Test("nobody takes the node: all of it is removed again") func noBackend() throws {
        let lab = try DaemonLab()
        let toolstack = try Toolstack(store: lab.store, takeSeconds: 0.2)
        let request = try request()
        let error = failure { () throws(ControlError) in try toolstack.attach(request) }
        #expect(error?.status == .timedOut)
        #expect(error?.description.contains("is xbbd running") == true)
        try expectNothing(of: request.address, in: lab)
    }

    @Test("attached, refused a second time, detached") func life() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        let toolstack = try Toolstack(store: lab.store)
        let request = try request()
        try toolstack.attach(request)
        let again = failure { () throws(ControlError) in try toolstack.attach(request) }
        #expect(again?.description.contains("xvda of domain 1 is attached already") == true)
        let path = request.address.backendPath(own: 0)
        #expect(try lab.store.text("\(path)/physical-device-path") == "/disk.img")
        #expect(try lab.store.text("\(path)/hotplug-status") == "connected")
        #expect(try toolstack.detach(request.address, force: false, seconds: 30) == .closed)
        try expectNothing(of: request.address, in: lab)
        try eventually("xbbd forgets it") { try lab.row("vbd/1/51712") == nil }
    }

    @Test("an image that cannot be opened: the reason is told and all is removed") func badImage() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "bad-image")
        try lab.startDaemon()
        let toolstack = try Toolstack(store: lab.store)
        let request = try request("qcow2:/nowhere")
        let error = failure { () throws(ControlError) in try toolstack.attach(request) }
        #expect(error == ControlError("qcow2:/nowhere: no such file or directory"))
        try expectNothing(of: request.address, in: lab)
    }

    @Test("without waiting all is written at once") func noWait() throws {
        let lab = try DaemonLab()
        let toolstack = try Toolstack(store: lab.store)
        let request = try request()
        try toolstack.attach(request, waits: false)
        #expect(try lab.store.text("\(request.address.backendPath(own: 0))/physical-device-path") == "/disk.img")
        #expect(try lab.store.text("\(request.address.backendPath(own: 0))/state") == "1")
        #expect(try toolstack.detach(request.address, force: true, seconds: 0) == .closed)
        try expectNothing(of: request.address, in: lab)
    }

    @Test("a guest that keeps its disk is asked, and made to give it up by force") func stubborn() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "stubborn")
        try lab.startDaemon()
        let toolstack = try Toolstack(store: lab.store)
        let request = try request()
        try toolstack.attach(request)
        let error = failure { () throws(ControlError) in
            _ = try toolstack.detach(request.address, force: false, seconds: 0.2)
        }
        #expect(error?.status == .timedOut)
        let path = request.address.backendPath(own: 0)
        #expect(try lab.store.text("\(path)/online") == "0")
        #expect(try lab.store.text("\(path)/state") == "5")
        #expect(try toolstack.detach(request.address, force: true, seconds: 0.2) == .torn)
        try expectNothing(of: request.address, in: lab)
    }

    @Test("a disk is found whatever its kind") func find() throws {
        let lab = try DaemonLab()
        let toolstack = try Toolstack(store: lab.store)
        let reference = try #require(VBDReference(domain: 1, device: 51712))
        let missing = failure { () throws(ControlError) in _ = try toolstack.find(reference) }
        #expect(missing?.description.contains("has no disk xvda") == true)
        let qdisk = try lab.makeNode(1, 51712, kind: "qdisk")
        #expect(try toolstack.find(reference) == qdisk)
        _ = try lab.makeNode(1, 51712, kind: "vbd")
        let ambiguous = failure { () throws(ControlError) in _ = try toolstack.find(reference) }
        #expect(ambiguous?.description.contains("qdisk, vbd") == true)
        #expect(try toolstack.find(try #require(VBDReference(kind: "qdisk", domain: 1, device: 51712))) == qdisk)
    }
}
