// SPDX-License-Identifier: BSD-2-Clause
// Values as text: what is taken, and what is said of what is not.
public import Base

extension SettingUnit {
    /// A number of the unit: of bytes with K, M, G or T behind it for powers of 1024, as in options of plugins; nil where it
    /// is none, or larger than an `Int`.
    func number(_ text: String) -> Int? {
        guard self == .bytes || self == .bytesPerSecond, let last = text.utf8.last,
            let power = [UInt8]("kmgt".utf8).firstIndex(of: last | 0x20)
        else { return Int(text) }
        guard let number = Int(text.dropLast()) else { return nil }
        let (scaled, overflow) = number.multipliedReportingOverflow(by: 1 << ((power + 1) * 10))
        return overflow ? nil : scaled
    }
}

extension SettingType {
    /// Completes "expected ...".
    var expected: String {
        switch self {
        case .flag: "yes or no"
        case .number(let range, let unit):
            "a number from \(range.lowerBound) to \(range.upperBound)"
                + (unit == .none ? "" : ", in \(unit.rawValue)")
        case .text(let rule), .list(let rule): rule.expected
        }
    }

    /// What is to be known of the values, for people: "yes or no", "0 to 1000000 microseconds"; empty
    /// where the help says it.
    public var bounds: String {
        switch self {
        case .number(let range, let unit):
            "\(range.lowerBound) to \(range.upperBound)" + (unit == .none ? "" : " \(unit.rawValue)")
        case .text(let rule), .list(let rule): rule.choices.isEmpty ? "" : rule.expected
        case .flag: "yes or no"
        }
    }
}

extension SettingDeclaration {
    /// Reads a whole value as it stands in xbb.conf and behind `xbbctl set`. Flags are yes, on, true, 1 or no, off, false,
    /// 0; elements of a list stand between spaces or commas; paths are absolute. `label` is the setting's name in messages.
    public func parse(_ text: String, label: String? = nil) throws(OperationError) -> SettingValue {
        let label = label ?? name
        func refuse(_ wrong: String, _ expected: String? = nil) -> OperationError {
            OperationError(.option, "\(label) '\(wrong)': expected \(expected ?? type.expected)")
        }
        switch type {
        case .flag:
            switch text {
            case "yes", "on", "true", "1": return .flag(true)
            case "no", "off", "false", "0": return .flag(false)
            default: throw refuse(text)
            }
        case .number(let range, let unit):
            guard let number = unit.number(text), range.contains(number) else { throw refuse(text) }
            return .number(number)
        case .text(let rule):
            guard rule.accepts(text) else { throw refuse(text) }
            return .text(text)
        case .list(let rule):
            let words = text.split { $0 == " " || $0 == "," || $0 == "\t" }.map(String.init)
            if let wrong = words.first(where: { !rule.accepts($0) }) { throw refuse(wrong) }
            if words.isEmpty { throw OperationError(.option, "\(label): expected at least one: \(rule.expected)") }
            if Set(words).count != words.count {
                throw OperationError(.option, "\(label) '\(text)': something is named twice")
            }
            return .list(words)
        }
    }

    /// Reads what follows an option of a command line: one element of a list, with spaces and commas in it; a relative
    /// path begins in `workingDirectory`.
    public func parse(option text: String, label: String, workingDirectory: String) throws(OperationError)
        -> SettingValue
    {
        func element(_ rule: TextRule) throws(OperationError) -> String {
            let element = rule.isPath && !text.isEmpty && !text.hasPrefix("/") ? "\(workingDirectory)/\(text)" : text
            guard rule.accepts(element) else {
                throw OperationError(.option, "\(label) '\(text)': expected \(rule.expected)")
            }
            return element
        }
        switch type {
        case .flag, .number: return try parse(text, label: label)
        case .text(let rule): return .text(try element(rule))
        case .list(let rule): return .list([try element(rule)])
        }
    }

    /// The value in the file that is shipped.
    public var shown: String { usual.map(\.description) ?? example }

    /// What counts where nothing is given, for people; empty where nothing does.
    public var usualText: String { otherwise.isEmpty ? usual?.description ?? "" : otherwise }
}

extension [SettingDeclaration] {
    /// The setting called `name`, in either spelling.
    public func named(_ name: String) -> SettingDeclaration? {
        first { $0.name == name || $0.oldName == name }
    }

    /// For an error about an unknown name: "did you mean ...?" where one is near, else all of them.
    public func hint(for name: String) -> String {
        let names = map(\.name)
        if let near = Spelling.nearest(to: name.replacing("_", with: "-"), among: names) {
            return "did you mean '\(near)'?"
        }
        return "there are \(names.joined(separator: ", "))"
    }
}

/// Names that were nearly meant.
public enum Spelling {
    /// The name that is one slip away from `word`, two where it is longer than five characters: a letter that is missing,
    /// too much or wrong, or two that changed places; else the one that begins with `word`. The first of several that are
    /// equally near; nil where none is.
    public static func nearest(to word: String, among names: [String]) -> String? {
        let most = word.utf8.count > 5 ? 2 : 1
        var best: (name: String, slips: Int)?
        for name in names where abs(name.utf8.count - word.utf8.count) <= most {
            let slips = distance(Array(word.utf8), Array(name.utf8))
            if slips <= most, slips < best?.slips ?? .max { best = (name, slips) }
        }
        if let best { return best.name }
        let begun = names.filter { $0.hasPrefix(word) }
        return begun.count == 1 && word.utf8.count > 2 ? begun.first : nil
    }

    /// Optimal string alignment distance.
    private static func distance(_ left: [UInt8], _ right: [UInt8]) -> Int {
        var before: [Int] = []
        var last = Array(0...right.count)
        for (row, byte) in left.enumerated() {
            var line = [row + 1]
            for (column, other) in right.enumerated() {
                var slips = Swift.min(line[column], last[column + 1]) + 1
                slips = Swift.min(slips, last[column] + (byte == other ? 0 : 1))
                if row > 0, column > 0, byte == right[column - 1], left[row - 1] == other {
                    slips = Swift.min(slips, before[column - 1] + 1)
                }
                line.append(slips)
            }
            before = last
            last = line
        }
        return last[right.count]
    }
}
