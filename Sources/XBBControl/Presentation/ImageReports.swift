// SPDX-License-Identifier: BSD-2-Clause
// What is known about an image, as text for people. Names in it come from the image, so characters that a terminal
// would act on are removed.
import Support

extension Reports {
    /// Which formats an image looks like.
    public static func probe(_ answer: JSON) -> [String] {
        var lines: [String] = []
        var table = TextTable([.words("LOOKS LIKE"), .words("PLUGIN"), .numbers("SCORE")])
        let matches = answer["matches"]?.elements ?? []
        for match in matches { table.append(["format", "plugin", "score"].map { cell(match[$0]) }) }
        lines += matches.isEmpty ? ["no plugin knows what it looks like"] : table.lines
        if let name = answer["looks_like"]?.string { lines.append("by its magic it is \(TextTable.printable(name))") }
        if let format = answer["served_as"]?.string { lines.append("it was served as \(TextTable.printable(format))") }
        if let format = answer["auto"]?.string {
            lines.append("format=auto would be \(TextTable.printable(format))")
        } else {
            lines.append("format=auto is refused: \(TextTable.printable(cell(answer["reason"])))")
        }
        return lines
    }

    /// The content of an image and of those below it.
    public static func inspect(_ answer: JSON) -> [String] {
        var lines = inspectOne(answer)
        for image in answer["chain"]?.elements ?? [] {
            lines.append("")
            lines += image["error"] == nil ? inspectOne(image) : [refusal(of: image)]
        }
        return lines
    }

    /// What two readers said of an image.
    public static func compare(_ answer: JSON) -> [String] {
        let found = answer["comparison"] ?? .null
        var lines: [String] = []
        for range in found["differences"]?.elements ?? [] {
            lines.append(
                "differs: \(place(range)): this reader \(cell(range["this_reader"])), libqcow \(cell(range["second_reader"]))"
            )
        }
        for range in found["known_faults"]?.elements ?? [] {
            lines.append("known fault of libqcow, \(cell(range["fault"])): \(place(range)): \(cell(range["words"]))")
        }
        for part in found["not_compared"]?.elements ?? [] {
            lines.append("not compared: \(cell(part["bytes"])) bytes: \(cell(part["reason"]))")
        }
        let named = (found["differences"]?.elements.count ?? 0, found["known_faults"]?.elements.count ?? 0)
        let all = (found["difference_count"]?.unsigned ?? 0, found["known_fault_count"]?.unsigned ?? 0)
        if all.0 > UInt64(named.0) || all.1 > UInt64(named.1) {
            lines.append(
                "not named: \(all.0 - UInt64(named.0)) more ranges that differ, \(all.1 - UInt64(named.1)) of known faults"
            )
        }
        switch found["verdict"]?.string {
        case "same": lines.append("both readers read the same, \(cell(found["compared"])) bytes")
        case "known-faults":
            lines.append(
                "both readers read the same, \(cell(found["compared"])) bytes, but for known faults of libqcow")
        case "unreadable": lines.append("cannot be compared: \(cell(found["reason"]))")
        default:
            lines.append("the readers differ in \(cell(found["difference_bytes"])) of \(cell(found["compared"])) bytes")
        }
        return lines.map { TextTable.printable($0) }
    }

    private static func place(_ range: JSON) -> String {
        "\(cell(range["length"])) bytes at \(cell(range["offset"])) of the disk (sector \(cell(range["sector"])))"
    }

    private static func refusal(of image: JSON) -> String {
        TextTable.printable("below it, \(cell(image["image"])) would be refused: \(cell(image["error"]))")
    }

    private static func inspectOne(_ answer: JSON) -> [String] {
        let apart = ["references", "warnings", "chain", "facts"]
        var table = TextTable([.words(""), .words("")])
        for member in answer.members where !apart.contains(member.name) {
            if case .array(let words) = member.value {
                table.append([member.name, words.isEmpty ? "-" : words.map { cell($0) }.joined(separator: " ")])
            } else {
                table.append([member.name, cell(member.value)])
            }
        }
        for fact in answer["facts"]?.members ?? [] {
            guard case .array(let words) = fact.value else {
                table.append([TextTable.printable(fact.name), cell(fact.value)])
                continue
            }
            for word in words { table.append([TextTable.printable(fact.name), cell(word)]) }
        }
        for reference in answer["references"]?.elements ?? [] {
            table.append([cell(reference["kind"]), "\(cell(reference["format"])):\(cell(reference["name"]))"])
        }
        let warnings = (answer["warnings"]?.elements ?? []).map { "warning: \(TextTable.printable(cell($0)))" }
        return table.lines + warnings
    }
}
