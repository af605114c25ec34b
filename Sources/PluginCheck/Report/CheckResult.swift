// SPDX-License-Identifier: BSD-2-Clause
// Results of checks, as text for people and for programs.
import PluginHost
import Support

/// The result of one check.
package struct CheckResult: Sendable {
    /// The outcome.
    package enum Outcome: Equatable, Sendable {
        case passed
        /// What is wrong, and what to do about it.
        case failed(String)
        /// Why there was nothing to check.
        case skipped(String)
    }

    package let check: Check
    package var outcome: Outcome
    /// Measurements.
    package var notes: [String] = []
    /// Duration in seconds.
    package var seconds = 0.0

    package init(check: Check, outcome: Outcome) {
        self.check = check
        self.outcome = outcome
    }
}

extension [CheckResult] {
    /// How many checks passed, failed, and were skipped.
    package var counts: (passed: Int, failed: Int, skipped: Int) {
        reduce(into: (0, 0, 0)) { counts, result in
            switch result.outcome {
            case .passed: counts.passed += 1
            case .failed: counts.failed += 1
            case .skipped: counts.skipped += 1
            }
        }
    }

    /// A JUnit file for continuous integration.
    package func junit(suite: String) -> String {
        let (_, failed, skipped) = counts
        var text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        text += "<testsuite name=\"\(escaped(suite))\" tests=\"\(count)\" "
        text += "failures=\"\(failed)\" skipped=\"\(skipped)\">\n"
        for result in self {
            text += "  <testcase classname=\"\(result.check.group.rawValue)\" name=\"\(result.check.name)\""
            text += " time=\"\(rounded(result.seconds))\">"
            switch result.outcome {
            case .passed: break
            case .failed(let why): text += "<failure message=\"\(escaped(why))\"/>"
            case .skipped(let why): text += "<skipped message=\"\(escaped(why))\"/>"
            }
            if !result.notes.isEmpty {
                text += "<system-out>\(escaped(result.notes.joined(separator: "\n")))</system-out>"
            }
            text += "</testcase>\n"
        }
        return text + "</testsuite>\n"
    }

    /// One JSON object.
    package func json(plugin: String) -> JSON {
        let (passed, failed, skipped) = counts
        return .object([
            ("plugin", .string(plugin)), ("passed", .integer(passed)), ("failed", .integer(failed)),
            ("skipped", .integer(skipped)), ("checks", .array(map(\.json))),
        ])
    }
}

extension CheckResult {
    fileprivate var json: JSON {
        let (word, why): (String, String?) =
            switch outcome {
            case .passed: ("passed", nil)
            case .failed(let why): ("failed", why)
            case .skipped(let why): ("skipped", why)
            }
        return .object([
            ("check", .string(check.identifier)), ("outcome", .string(word)), ("why", .text(why)),
            ("notes", .array(notes.map { .string($0) })), ("seconds", .number(rounded(seconds))),
        ])
    }

    /// A line for a terminal.
    package var line: String {
        let name = check.identifier.padded(to: 26)
        let figures = notes.isEmpty ? "" : " (\(notes.joined(separator: "; ")))"
        return switch outcome {
        case .passed: "ok    \(name) \(check.summary)\(figures)"
        case .failed(let why): "FAIL  \(name) \(why)"
        case .skipped(let why): "skip  \(name) \(why)"
        }
    }

    /// Lines of the Test Anything Protocol, version 13.
    package func tap(number: Int) -> String {
        let name = "\(number) - \(check.identifier)"
        var text =
            switch outcome {
            case .passed: "ok \(name) \(check.summary)\n"
            // A '#' would start a directive.
            case .failed(let why):
                "not ok \(name)\n  ---\n  message: \(JSON.string(why).serialized)\n  severity: fail\n  ...\n"
            case .skipped(let why): "ok \(name) # SKIP \(why.replacing("#", with: ""))\n"
            }
        for note in notes { text += "# \(check.identifier): \(note)\n" }
        return text
    }
}

/// Seconds with three decimals.
private func rounded(_ seconds: Double) -> String {
    let thousandths = Int(seconds * 1000)
    let rest = String(thousandths % 1000)
    return "\(thousandths / 1000).\(String(repeating: "0", count: 3 - rest.count))\(rest)"
}

extension String {
    fileprivate func padded(to width: Int) -> String { self + String(repeating: " ", count: max(width - count, 0)) }
}

/// Text for XML 1.0, which allows no control characters.
private func escaped(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
        switch scalar {
        case "&": result += "&amp;"
        case "<": result += "&lt;"
        case ">": result += "&gt;"
        case "\"": result += "&quot;"
        case "\n", "\t": result.unicodeScalars.append(scalar)
        case _ where scalar.value < 0x20 || scalar.value == 0x7f: result += "?"
        default: result.unicodeScalars.append(scalar)
        }
    }
    return result
}
