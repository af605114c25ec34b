// SPDX-License-Identifier: BSD-2-Clause
// Messages of servers, made without the code that is tested.

/// The bytes of a number, the most significant first.
func wire(_ value: some FixedWidthInteger) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }

/// Messages of the handshake.
enum Server {
    static let fixed: UInt16 = 1
    static let noZeroes: UInt16 = 2

    static func greeting(_ flags: UInt16 = 3) -> [UInt8] { Array("NBDMAGICIHAVEOPT".utf8) + wire(flags) }

    static func oldstyle(size: UInt64, flags: UInt32) -> [UInt8] {
        Array("NBDMAGIC".utf8) + wire(UInt64(0x0000_4202_8186_1253)) + wire(size) + wire(flags)
            + [UInt8](repeating: 0, count: 124)
    }

    static func reply(_ option: UInt32, _ type: UInt32, _ data: [UInt8] = []) -> [UInt8] {
        wire(UInt64(0x0003_e889_0455_65a9)) + wire(option) + wire(type) + wire(UInt32(data.count)) + data
    }

    static func consent(_ option: UInt32) -> [UInt8] { reply(option, 1) }
    static func refusal(_ option: UInt32, _ error: UInt32, _ text: String = "") -> [UInt8] {
        reply(option, 1 << 31 | error, Array(text.utf8))
    }
    static func export(size: UInt64, flags: UInt16) -> [UInt8] {
        reply(7, 3, wire(UInt16(0)) + wire(size) + wire(flags))
    }
    static func blocks(_ minimum: UInt32, _ preferred: UInt32, _ payload: UInt32) -> [UInt8] {
        reply(7, 3, wire(UInt16(3)) + wire(minimum) + wire(preferred) + wire(payload))
    }
    static func context(_ number: UInt32, _ name: String = "base:allocation") -> [UInt8] {
        reply(10, 4, wire(number) + Array(name.utf8))
    }
}

/// Messages of the transmission phase.
enum Reply {
    static func simple(_ cookie: UInt64, error: UInt32 = 0, data: [UInt8] = []) -> [UInt8] {
        wire(UInt32(0x6744_6698)) + wire(error) + wire(cookie) + data
    }
    static func chunk(_ cookie: UInt64, type: UInt16, isLast: Bool, _ payload: [UInt8] = []) -> [UInt8] {
        wire(UInt32(0x668e_33ef)) + wire(UInt16(isLast ? 1 : 0)) + wire(type) + wire(cookie)
            + wire(UInt32(payload.count)) + payload
    }
    static func done(_ cookie: UInt64) -> [UInt8] { chunk(cookie, type: 0, isLast: true) }
    static func data(_ cookie: UInt64, at offset: UInt64, _ data: [UInt8], isLast: Bool = false) -> [UInt8] {
        chunk(cookie, type: 1, isLast: isLast, wire(offset) + data)
    }
    static func hole(_ cookie: UInt64, at offset: UInt64, _ length: UInt32, isLast: Bool = false) -> [UInt8] {
        chunk(cookie, type: 2, isLast: isLast, wire(offset) + wire(length))
    }
    static func extents(_ cookie: UInt64, context: UInt32 = 1, _ pairs: [(UInt32, UInt32)], isLast: Bool = true)
        -> [UInt8]
    {
        chunk(cookie, type: 5, isLast: isLast, wire(context) + pairs.flatMap { wire($0.0) + wire($0.1) })
    }
    static func error(
        _ cookie: UInt64, _ error: UInt32, _ text: String = "", at offset: UInt64? = nil, isLast: Bool = false,
        type: UInt16? = nil
    ) -> [UInt8] {
        let payload = wire(error) + wire(UInt16(text.utf8.count)) + Array(text.utf8) + (offset.map { wire($0) } ?? [])
        return chunk(cookie, type: type ?? (offset == nil ? 0x8001 : 0x8002), isLast: isLast, payload)
    }
}
