// SPDX-License-Identifier: BSD-2-Clause
// The backend's own node, as the toolstack and the hotplug script fill it.
public import Base

/// Who writes the location of the storage.
public enum StorageSource: Equatable, Sendable {
    /// A hotplug script writes `physical-device-path`, at some later time or never.
    case hotplug
    /// The toolstack's `params` name the image; no script runs.
    case params

    /// The usual source for nodes below backend/<kind>: qdisk has no script, all other kinds have one.
    public init(kind: String) {
        self = kind == "qdisk" ? .params : .hotplug
    }
}

/// A snapshot of the backend's node.
///
/// Read it in one transaction. Nothing in it comes from the guest: `device-type` is read from this node, not from the
/// frontend's.
public struct BackendNode: Equatable, Sendable {
    /// The frontend's node, below the home of `frontendID`.
    public let frontendPath: String
    /// The frontend's domain.
    public let frontendID: UInt16
    /// nil if there is no `state`: the node is gone.
    public let state: XenbusState?
    /// False once the toolstack wants the device removed; true if the key is missing.
    public let isOnline: Bool
    /// Disk or CD.
    public let deviceType: DeviceType
    /// The medium is removable.
    public let isRemovable: Bool
    /// Discard may be offered.
    public let mayDiscard: Bool
    /// True for mode "r"; nil if `mode` is missing.
    public let isReadOnly: Bool?
    /// The target as the toolstack wrote it.
    public let params: String?
    /// The hotplug script.
    public let script: String?
    /// The virtual device's name in the guest.
    public let virtualDevice: String?
    /// "phy", "qdisk", "vbd3".
    public let type: String?
    /// From the hotplug script.
    public let physicalDevice: DeviceNumber?
    /// From the hotplug script.
    public let physicalDevicePath: String?
    /// From the hotplug script.
    public let format: ImageFormat?
    /// For the plugin, and settings of the disk: from the hotplug script or the toolstack, or what ``params`` says in front
    /// of the location while nobody has written them.
    public let options: [String: String]
    /// From the hotplug script or an earlier backend.
    public let hotplugStatus: String?
    /// The size that an earlier backend published, in sectors of 512 bytes.
    public let publishedSectorCount: UInt64?
    /// What an earlier backend told the frontend of requests' data.
    public let publishedTransfer: TransferOffer
    /// What an earlier backend let frontends ask for; nil: nothing.
    public let offered: FrontendLimits?
    /// Until when the disk takes no requests, in ns of CLOCK_MONOTONIC; nil: it is not paused.
    public let pausedUntil: UInt64?
    /// The disk is getting other storage; nil: it keeps what it has.
    public let exchange: StorageExchange?

    /// Every key that a snapshot is made of.
    public static let keys = [
        BackendKey.frontendID, BackendKey.frontend, BackendKey.state, BackendKey.online, BackendKey.deviceType,
        BackendKey.removable, BackendKey.discardEnable, BackendKey.mode, BackendKey.params,
        BackendKey.script, BackendKey.dev, BackendKey.type, BackendKey.physicalDevice, BackendKey.physicalDevicePath,
        BackendKey.format, BackendKey.options, BackendKey.hotplugStatus, BackendKey.sectors,
        BackendKey.maxIndirectSegments,
        BackendKey.maxRingPageOrder, BackendKey.maxQueues, BackendKey.persistent, BackendKey.paused, BackendKey.swap,
    ]

    /// First reserved domain identifier (DOMID_FIRST_RESERVED of xen.h).
    static let firstReservedDomain: UInt64 = 0x7ff0

    /// Reads the node; `read` returns the value of a key below it, or nil.
    ///
    /// Throws the first rule that is broken. Only `frontend` and `frontend-id` are always mandatory; `mode` is
    /// mandatory once the storage is known.
    public init(read: (_ key: String) -> [UInt8]?) throws(NegotiationError) {
        self = try withoutActuallyEscaping(read) { (read) throws(NegotiationError) -> BackendNode in
            try BackendNode(NodeReader(value: read))
        }
    }

    private init(_ node: NodeReader) throws(NegotiationError) {
        let domain = try node.requiredNumber(BackendKey.frontendID, maximum: Self.firstReservedDomain - 1)
        frontendID = UInt16(domain)
        frontendPath = try Self.frontendPath(node, domain: domain)
        state = XenbusState.reading(node.value(BackendKey.state))
        _ = try node.flag(BackendKey.online, default: true)
        isOnline = Self.isOnline(reading: node.value(BackendKey.online))
        deviceType = try node.text(BackendKey.deviceType) == "cdrom" ? .cdrom : .disk
        isRemovable = try node.flag(BackendKey.removable, default: false)
        mayDiscard = try node.flag(BackendKey.discardEnable, default: true)
        isReadOnly = try Self.readOnly(node)
        params = try node.text(BackendKey.params)
        script = try node.text(BackendKey.script)
        virtualDevice = try node.text(BackendKey.dev)
        type = try node.text(BackendKey.type)
        if let text = try node.text(BackendKey.physicalDevice) {
            physicalDevice = try DeviceNumber(parsing: text)
        } else {
            physicalDevice = nil
        }
        physicalDevicePath = try node.text(BackendKey.physicalDevicePath)
        if let text = try node.text(BackendKey.format) {
            format = try ImageFormat(parsing: text, key: BackendKey.format)
        } else {
            format = nil
        }
        options = Self.options(parsing: try node.text(BackendKey.options) ?? Self.options(inTarget: params))
        hotplugStatus = try node.text(BackendKey.hotplugStatus)
        publishedSectorCount = try node.number(BackendKey.sectors, maximum: .max)
        publishedTransfer = TransferOffer(
            maximumIndirectSegments: UInt32(try node.number(BackendKey.maxIndirectSegments) ?? 0),
            keepsGrants: try node.flag(BackendKey.persistent, default: false))
        offered = Self.offered(node)
        pausedUntil = node.value(BackendKey.paused).flatMap { UInt64(String(decoding: $0, as: UTF8.self)) }
        exchange = node.value(BackendKey.swap).flatMap { StorageExchange(String(decoding: $0, as: UTF8.self)) }
    }

    /// What stands there of another backend's offer; what breaks a rule counts as nothing.
    private static func offered(_ node: NodeReader) -> FrontendLimits? {
        do throws(NegotiationError) {
            let order = try node.number(BackendKey.maxRingPageOrder)
            let queues = try node.number(BackendKey.maxQueues)
            if order == nil && queues == nil { return nil }
            return FrontendLimits(
                maximumRingPageOrder: Int(clamping: order ?? 0), maximumQueueCount: Int(clamping: queues ?? 1))
        } catch {
            return nil
        }
    }

    /// The meaning of ``BackendKey/options``: "name=value,name=value".
    public static func options(parsing text: String) -> [String: String] {
        var found: [String: String] = [:]
        for part in text.split(separator: ",") {
            let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            found[String(pair[0])] = pair.count == 2 ? String(pair[1]) : "on"
        }
        return found
    }

    /// The same of a target of block-xbb, "FORMAT,name=value:LOCATION"; a path has none.
    private static func options(inTarget target: String?) -> String {
        guard let target, !target.hasPrefix("/"), let colon = target.firstIndex(of: ":") else { return "" }
        return target[..<colon].split(separator: ",", maxSplits: 1).dropFirst().first.map(String.init) ?? ""
    }

    /// The meaning of an `online` key, for updates and for nodes that break other rules: only a zero asks for
    /// detaching.
    public static func isOnline(reading bytes: [UInt8]?) -> Bool {
        guard let bytes, !bytes.isEmpty else { return true }
        return !bytes.allSatisfy { $0 == UInt8(ascii: "0") }
    }

    /// The storage to open; nil while it is not known yet. Throws if a key breaks a rule or `mode` is missing.
    public func deviceRequest(from source: StorageSource) throws(NegotiationError) -> DeviceRequest? {
        let image: ImageLocation
        switch source {
        case .hotplug:
            guard let name = physicalDevicePath else { return nil }
            let value = [UInt8](name.utf8)
            guard !name.isEmpty else {
                throw NegotiationError(.noImage, key: BackendKey.physicalDevicePath, value: value)
            }
            let format = format ?? .raw
            if format == .raw {
                let path = try ImageLocation.absolutePath(
                    name, key: BackendKey.physicalDevicePath, value: value, mayBeBelowDev: true)
                image = ImageLocation(path: path, format: format)
            } else {
                try ImageLocation.checkOpaque(name, key: BackendKey.physicalDevicePath)
                image = ImageLocation(path: name, format: format)
            }
        case .params:
            guard let params else { return nil }
            let isEmpty = (deviceType == .cdrom || isRemovable) && ImageLocation.isEmptyDrive(params)
            image = isEmpty ? .emptyDrive : try ImageLocation(parsing: params)
        }
        guard let isReadOnly else { throw NegotiationError(.missing, key: BackendKey.mode) }
        return DeviceRequest(
            image: image, deviceNumber: source == .hotplug ? physicalDevice : nil, isReadOnly: isReadOnly,
            deviceType: deviceType, isRemovable: isRemovable, mayDiscard: mayDiscard)
    }

    /// The frontend's path must lie in the frontend domain's home: otherwise this node could make another domain's keys
    /// count as the frontend's.
    private static func frontendPath(_ node: NodeReader, domain: UInt64) throws(NegotiationError) -> String {
        let path = try node.requiredText(BackendKey.frontend, maximum: 3072)
        let home = "/local/domain/\(domain)/"
        let names = path.dropFirst(home.count).split(separator: "/", omittingEmptySubsequences: false)
        let isBelowHome =
            path.hasPrefix(home)
            && names.allSatisfy { name in
                !name.isEmpty
                    && name.utf8.allSatisfy {
                        switch $0 {
                        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "_"),
                            UInt8(ascii: "@"):
                            true
                        default: false
                        }
                    }
            }
        guard isBelowHome else {
            throw NegotiationError(.notAFrontendPath, key: BackendKey.frontend, value: [UInt8](path.utf8))
        }
        return path
    }

    /// libxl writes "r" and "w"; block scripts also accept "!" (shared) and the long forms.
    private static func readOnly(_ node: NodeReader) throws(NegotiationError) -> Bool? {
        switch try node.text(BackendKey.mode) {
        case nil: return nil
        case "r", "ro", "r!": return true
        case "w", "rw", "w!": return false
        case .some(let mode): throw NegotiationError(.unknownMode, key: BackendKey.mode, value: [UInt8](mode.utf8))
        }
    }
}
