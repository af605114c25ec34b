// SPDX-License-Identifier: BSD-2-Clause
// JSON as `xbbctl --json` prints it: xbb-json(7) has each member of each command, and a test that both are the same.
public import Support

/// One object on one line, with the version of its form in front.
public enum JSONForm {
    /// Grows when a member is taken away, or gets another type or meaning: programs read it to know what they can rely on.
    public static let version = 1

    /// The line of an answer, which is an object's text.
    public static func line(_ object: String) -> String {
        let head = "{\"json_version\":\(version)"
        return object == "{}" ? head + "}" : head + "," + object.dropFirst()
    }

    /// The line of an object.
    public static func line(_ value: JSON) -> String { line(value.serialized) }
}
