// SPDX-License-Identifier: BSD-2-Clause
// Subcommands that do a toolstack's work in XenStore.
import ArgumentParser
import Glibc
import XBBControl
import Support

extension XBBCtl {
    struct Attach: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Attaches a disk to a guest, as xl block-attach and a hotplug script do.")
        @ParentCommand var parent: XBBCtl
        @Argument(help: DeviceWords.domainHelp, completion: Completions.domains)
        var domid: String
        @Argument(help: DeviceWords.deviceHelp, completion: Completions.newDevices)
        var vdev: String
        @Option(
            help: ArgumentHelp("The directory below backend/: vbd, qdisk or vbd3. (default: vbd)", valueName: "kind"))
        var kind: String?
        @Argument(
            help: ArgumentHelp(
                "The format and where the image is: raw:/dev/vg/disk, qcow2:/disk.qcow2, nbd://host/export, null,size=1G:.",
                valueName: "format:location"), completion: Completions.images)
        var image: String
        @Flag(help: "The guest may not write.")
        var readonly = false
        @Flag(help: "The guest writes beside others who write: mode w!. Nothing makes sure that this goes well.")
        var shared = false
        @Flag(help: "A CD drive: read-only, and its medium can be changed; 'empty:' in place of the image is none.")
        var cdrom = false
        @Flag(help: "A disk whose medium can be changed as that of a CD drive, for guests that see no CD drives.")
        var removable = false
        @Flag(help: "Attach it whoever uses the image or device. Says, and logs, what is overridden.")
        var force = false
        @Option(
            name: .customLong("option"),
            help: ArgumentHelp("An option for the plugin; may be given more than once.", valueName: "key=value"))
        var options: [String] = []
        @Flag(help: "Return when the nodes are written, without waiting until the storage is open.")
        var noWait = false
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func validate() throws {
            try DeviceWords.check(domain: domid, device: vdev, kind: kind)
            if cdrom && shared { throw ValidationError("--cdrom and --shared: a CD drive is read-only") }
            if readonly && shared {
                throw ValidationError("--readonly and --shared: a disk that is only read is shared anyway")
            }
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                // Wrong words are told before anybody is asked.
                _ = try DiskSpecification(parsing: image, workingDirectory: "")
                _ = try PluginOptions(options)
                if !noWait { try connection.requireDaemon() }
                let kinds = connection.locationKinds()
                let disk = try DiskSpecification(
                    parsing: image, workingDirectory: DiskSpecification.currentDirectory, isOpaque: kinds.isOpaque)
                let reference = try DeviceWords.reference(domain: domid, device: vdev, kind: kind, connection)
                guard
                    let address = VBDAddress(
                        kind: reference.kind ?? "vbd", domain: reference.domain, device: reference.device)
                else { throw ControlError("'\(vdev)' is no virtual device") }
                let request = AttachRequest(
                    address: address, deviceName: vdev, disk: disk, isReadOnly: readonly || cdrom,
                    isShared: shared, kind: cdrom ? .cdrom : removable ? .removable : .disk,
                    options: try PluginOptions(disk.options + options))
                let toolstack = try connection.toolstack()
                let sharing = AttachSharing(
                    loopback: connection.loopback, opaqueFormats: kinds.opaqueFormats, isForced: force
                ) { text in
                    let line = "xbbctl: --force overrides: \(TextTable.printable(text))\n"
                    _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
                }
                try toolstack.attach(request, waits: !noWait, sharing: sharing)
                XBBCtl.report(address, toolstack, noWait ? "requested" : "attached", format)
            }
        }
    }

    struct Detach: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Takes a disk from a guest, as xl block-detach does.")
        @ParentCommand var parent: XBBCtl
        @OptionGroup var device: Device
        @Flag(
            help:
                "Do not ask the guest, and do not insist on the backend's answer. Overrides a guest that uses the disk."
        )
        var force = false
        @Option(help: ArgumentHelp("How long to wait for guest and backend.", valueName: "seconds"))
        var timeout = 10.0
        @OptionGroup var connection: Connection
        @OptionGroup var format: Format

        func validate() throws {
            try XBBCtl.check(timeout: timeout, from: 0)
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                let toolstack = try connection.toolstack()
                let address = try toolstack.find(try device.reference(connection))
                let result = try toolstack.detach(address, force: force, seconds: timeout)
                XBBCtl.report(address, toolstack, result == .closed ? "detached" : "torn", format)
            }
        }
    }

    private static func report(_ address: VBDAddress, _ toolstack: Toolstack, _ result: String, _ format: Format) {
        let name = VirtualDevice.name(of: address.device)
        if format.json {
            let value = JSON.object([
                ("vbd", .string("\(address)")), ("device", .string(name)), ("result", .string(result)),
                ("backend_path", .string(address.backendPath(own: toolstack.own))),
                ("frontend_path", .string(address.frontendPath)),
            ])
            return print(JSONForm.line(value))
        }
        if result == "torn" {
            print("\(address): taken away; its backend has not said that it is closed")
        }
    }
}
