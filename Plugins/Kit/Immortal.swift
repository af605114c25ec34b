// SPDX-License-Identifier: BSD-2-Clause
// Memory of a plugin's description: made once per process and never freed, as the ABI wants it.
import Glibc
import PluginAPI

extension StaticString {
    /// The literal as the C string that it is: NUL-terminated and immortal.
    @safe public var cString: UnsafePointer<CChar> {
        unsafe UnsafeRawPointer(utf8Start).assumingMemoryBound(to: CChar.self)
    }
}

/// A C string that lives as long as the process.
///
/// `@unchecked Sendable`: it is never written again.
@safe
struct ImmortalText: @unchecked Sendable {
    let cString: UnsafePointer<CChar>?

    init(_ text: StaticString) { unsafe cString = text.cString }
    init(_ text: String) { unsafe cString = unsafe UnsafePointer(strdup(text)) }
}

/// A NULL-terminated list of C strings.
///
/// `@unchecked Sendable`: it is never written again.
@safe
struct ImmortalTexts: @unchecked Sendable {
    let list: UnsafePointer<UnsafePointer<CChar>?>

    init(_ texts: [ImmortalText]) {
        unsafe list = unsafe UnsafePointer(immortal(texts.map { unsafe $0.cString } + [nil]))
    }
}

/// Copies values to memory that lives as long as the process.
func immortal<Value>(_ values: [Value]) -> UnsafeMutablePointer<Value> {
    let memory = UnsafeMutablePointer<Value>.allocate(capacity: max(values.count, 1))
    for (index, value) in values.enumerated() { unsafe (memory + index).initialize(to: value) }
    return unsafe memory
}
