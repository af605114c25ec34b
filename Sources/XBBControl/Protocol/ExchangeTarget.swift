// SPDX-License-Identifier: BSD-2-Clause
// The storage that a disk is to get, from xbbctl to xbbd.
import Base
import CLinux
import Glibc
import Settings
import StorageKeeping

public import Support
import XenBus

/// Storage for a disk that is attached already.
public struct ExchangeTarget: Equatable, Sendable {
    /// The name of its format.
    public let format: String
    /// An absolute path, or what the format's plugin alone understands.
    public let location: String
    /// "key=value,key=value" for the plugin and settings of the disk; empty for none.
    public private(set) var options: String
    /// The number of a block device at the path.
    let number: DeviceNumber?

    /// The storage that a user named.
    public init(_ disk: DiskSpecification) throws(ControlError) {
        let isEmptyDrive = disk.format == .empty
        guard !disk.path.isEmpty || isEmptyDrive else {
            throw ControlError(
                "a device gets other storage by its path, and '\(disk.format.name)' has none", status: .usage)
        }
        format = disk.format.name
        location = isEmptyDrive ? ImageLocation.emptyDrive.path : disk.path
        options = try PluginOptions(disk.options).text
        var status = stat()
        // The call reads the path as C text, which Swift keeps for it, and fills the structure.
        let isDevice = unsafe stat(disk.path, &status) == 0 && status.st_mode & S_IFMT == S_IFBLK
        number =
            isDevice
            ? DeviceNumber(major: gnu_dev_major(status.st_rdev), minor: gnu_dev_minor(status.st_rdev)) : nil
    }

    /// No medium.
    private var isEmptyDrive: Bool { format == ImageFormat.empty.name }

    /// Reads the words of ``text``.
    init(parsing words: [String]) throws(ControlError) {
        guard words.count == 4, DiskSpecification.isFormat(words[0]),
            let options = Self.decoded(words[2]), let location = Self.decoded(words[3]), !location.isEmpty,
            location.utf8.count <= 4096, !location.hasControlCharacters
        else { throw ControlError("expected STORAGE as FORMAT NUMBER OPTIONS LOCATION") }
        format = words[0]
        self.options = try PluginOptions(options.split(separator: ",").map(String.init)).text
        self.location = location
        if words[1] == "-" {
            number = nil
        } else {
            do throws(NegotiationError) {
                number = try DeviceNumber(parsing: words[1])
            } catch {
                throw ControlError("\(error)")
            }
        }
    }

    /// The same storage, for a disk whose options are `old` so far: settings of the disk go on where this names no others. Limits
    /// that are named take the place of all.
    func keepingSettings(of old: String?) -> ExchangeTarget {
        let named = Self.pairs(options).compactMap { SettingsSchema.ofDisk.named($0.name) }
        let namesLimits = named.contains(where: SettingsSchema.isLimit)
        let kept = Self.pairs(old ?? "").filter { pair in
            guard let setting = SettingsSchema.ofDisk.named(pair.name) else { return false }
            return SettingsSchema.isLimit(setting) ? !namesLimits : !named.contains { $0.name == setting.name }
        }
        var target = self
        let entries = kept.map { "\($0.name)=\($0.value)" }
        target.options = ([options] + entries).filter { !$0.isEmpty }.joined(separator: ",")
        return target
    }

    /// Throws what is wrong with settings among the options: a worker that meets it later costs the guest a pause.
    func checkSettings() throws(ControlError) {
        // A name that is given twice says what it says last, as for the worker.
        let options = Dictionary(Self.pairs(options).map { ($0.name, $0.value) }) { $1 }
        do throws(OperationError) {
            try SettingsSchema.checkLimits(try SettingsSchema.settings(among: options))
        } catch {
            throw ControlError(error.description, status: .usage)
        }
    }

    /// Four words.
    var text: String {
        "\(format) \(number?.hexadecimal ?? "-") \(Self.encoded(options)) \(Self.encoded(location))"
    }

    /// Which file or device the name leads to; nil where it leads to none. For xbbctl: may block.
    var identity: StorageIdentity? {
        if isEmptyDrive { return nil }
        var status = stat()
        // As in init.
        guard location.hasPrefix("/"), unsafe stat(location, &status) == 0 else { return nil }
        return StorageIdentity(status)
    }

    /// The keys of a backend's node that name it; nil for a key that there is not to be.
    func keys(for source: StorageSource) -> [(key: String, value: String?)] {
        // libxl takes what has nothing behind the format for an empty drive.
        let target =
            isEmptyDrive ? "\(format):" : location.hasPrefix("\(format):") ? location : "\(format):\(location)"
        let optional = options.isEmpty ? nil : options
        switch source {
        case .params: return [(BackendKey.params, target), (BackendKey.options, optional)]
        case .hotplug:
            let words = options.isEmpty ? target : "\(format),\(options):\(location)"
            return [
                (BackendKey.params, words), (BackendKey.format, format), (BackendKey.physicalDevicePath, location),
                (BackendKey.physicalDevice, number?.hexadecimal), (BackendKey.options, optional),
            ]
        }
    }

    /// Throws why a disk that is served as `shown` says, the answer to `show`, is not to get this storage.
    public func check(against shown: JSON) throws(ControlError) {
        let served = (shown["images"]?.elements ?? []).compactMap { $0["path"]?.string }
        guard let identity else { return }
        for (index, path) in served.enumerated() {
            var status = stat()
            // As in init.
            guard unsafe stat(path, &status) == 0, StorageIdentity(status) == identity else { continue }
            if index == 0 { throw ControlError("\(location) is what the device is served from") }
            throw ControlError(
                "\(location) is below \(served[0]), which is served: all that was written since would be lost, and what is "
                    + "written to it would damage the image above; 'xbbctl commit' writes that back first")
        }
    }

    // MARK: Words

    /// Options by name and value, as a worker reads them.
    private static func pairs(_ text: String) -> [(name: String, value: String)] {
        text.split(separator: ",").map { option in
            let pair = option.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            return (pair[0], pair.count == 2 ? pair[1] : "on")
        }
    }

    private static func encoded(_ text: String) -> String {
        if text.isEmpty { return "%" }
        return text.utf8.map { byte in
            (0x21...0x7e).contains(byte) && byte != UInt8(ascii: "%")
                ? String(UnicodeScalar(byte)) : "%" + (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }.joined()
    }

    private static func decoded(_ word: String) -> String? {
        if word == "%" { return "" }
        var bytes: [UInt8] = []
        var rest = Array(word.utf8)[...]
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "%") else {
                bytes.append(byte)
                continue
            }
            guard let high = rest.popFirst(), let low = rest.popFirst(),
                let value = UInt8(String(decoding: [high, low], as: UTF8.self), radix: 16)
            else { return nil }
            bytes.append(value)
        }
        return String(validating: bytes, as: UTF8.self)
    }
}
