// SPDX-License-Identifier: BSD-2-Clause
// QEMU's machine protocol (QMP), as far as libxl uses it with the device model of a guest without emulated devices.
import Support

/// The answers of a machine without devices.
enum MachineProtocol {
    /// Sent to each client first. libxl requires a version here; no real QEMU has version 0.0.0.
    static let greeting = JSON.object([
        (
            "QMP",
            .object([
                (
                    "version",
                    .object([
                        ("qemu", .object([("major", .integer(0)), ("minor", .integer(0)), ("micro", .integer(0))])),
                        ("package", .string("xbb-dm \(xbbVersion)")),
                    ])
                ), ("capabilities", .array([])),
            ])
        )
    ])

    /// The answer to one message.
    static func answer(_ line: [UInt8]) -> JSON {
        do throws(JSONError) {
            let message = try JSON(parsing: line)
            let result = result(of: message["execute"]?.string)
            return .object([result] + (message["id"].map { [("id", $0)] } ?? []))
        } catch {
            return .object([failure("GenericError", "\(error)")])
        }
    }

    private static func result(of command: String?) -> JSON.Member {
        switch command {
        case "qmp_capabilities": ("return", .object([]))
        // After the start, libxl asks for serial ports (device_model_postconfig_chardev); there are none.
        case "query-chardev": ("return", .array([]))
        case "query-status":
            (
                "return",
                .object([("running", .bool(true)), ("singlestep", .bool(false)), ("status", .string("running"))])
            )
        case let command?: failure("CommandNotFound", "xbb-dm is no QEMU and has no '\(command)'")
        case nil: failure("GenericError", "expected {\"execute\": COMMAND}")
        }
    }

    private static func failure(_ kind: String, _ text: String) -> JSON.Member {
        ("error", .object([("class", .string(kind)), ("desc", .string(text))]))
    }
}
