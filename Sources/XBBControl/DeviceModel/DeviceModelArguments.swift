// SPDX-License-Identifier: BSD-2-Clause
// The command line that libxl gives a device model (libxl_dm.c, libxl__build_device_model_args_new and _old,
// libxl__spawn_qdisk_backend), as far as it matters to a device model that emulates nothing.
public import Xen

/// What libxl asks of the device model of one guest.
public struct DeviceModelArguments: Equatable, Sendable {
    /// The guest.
    public var domain: DomainID = 0
    /// The socket for libxl's queries once the device model is running; nil if libxl sends none, as for `xl devd`.
    public var monitorPath: String?
    /// Seconds within which all disks must be open. libxl waits for 60 s (LIBXL_DEVICE_MODEL_START_TIMEOUT).
    public var waitSeconds = 40
    /// The directory of the loopback Xen; nil on Xen.
    public var loopback: String?

    /// Reads the words after the program's name. Words that are not handled here describe emulated devices, which this
    /// guest does not have.
    ///
    /// Throws with status ``ControlStatus/failed`` for what only QEMU can do, and as wrong usage for what makes no
    /// sense.
    public init(parsing words: [String]) throws(ControlError) {
        var domain: DomainID?
        var isParavirtual = false
        var words = words[...]
        while let word = words.popFirst() {
            func value() throws(ControlError) -> String {
                guard let value = words.popFirst() else { throw ControlError("\(word) needs a value", status: .usage) }
                return value
            }
            switch word {
            case "-xen-domid", "-d":
                let text = try value()
                guard let number = DecimalText.domain(text) else {
                    throw ControlError("\(word) '\(text)': expected the number of a domain", status: .usage)
                }
                domain = number
            case "-xen-attach": isParavirtual = true
            case "-M", "-machine": if try value().hasPrefix("xenpv") { isParavirtual = true }
            case "-name", "-domain-name": _ = try value()
            case "-chardev": try takeChannel(try value())
            case "-vnc", "-display": try refuseDisplay(word, try value())
            case "-sdl", "-spice": try refuseDisplay(word, "")
            case "--wait":
                let text = try value()
                guard let seconds = DecimalText.number(text), (1...3600).contains(seconds) else {
                    throw ControlError("--wait '\(text)': expected 1 to 3600 seconds", status: .usage)
                }
                waitSeconds = Int(seconds)
            case "--loopback": loopback = try value()
            default: continue
            }
        }
        guard let domain else {
            throw ControlError("no -xen-domid: libxl starts this program, see xbb-dm(8)", status: .usage)
        }
        guard isParavirtual else {
            throw ControlError(
                "domain \(domain) is an HVM guest, whose machine only QEMU emulates: take QEMU as device model, and "
                    + "give the disks script=block-xbb")
        }
        self.domain = domain
    }

    private mutating func takeChannel(_ text: String) throws(ControlError) {
        let keys = text.split(separator: ",")
        func value(_ key: String) -> String? {
            keys.first { $0.hasPrefix(key + "=") }.map { String($0.dropFirst(key.count + 1)) }
        }
        switch value("id") {
        case "libxl-cmd":
            guard let path = value("path") else {
                throw ControlError("dm_restrict is for QEMU: remove it from the guest's configuration")
            }
            monitorPath = path
        case let id? where id.hasPrefix("libxl-channel"):
            throw ControlError("the guest has a channel, which only QEMU serves: take QEMU as device model")
        default: break  // "libxenstat-cmd": xentop does without
        }
    }

    private func refuseDisplay(_ word: String, _ value: String) throws(ControlError) {
        guard value != "none" else { return }
        throw ControlError("\(word): a display is what only QEMU serves: take QEMU as device model")
    }
}
