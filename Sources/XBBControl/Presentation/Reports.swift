// SPDX-License-Identifier: BSD-2-Clause
// Answers of xbbd as text for people. Names are those of the JSON; members that a newer worker adds are shown as they
// are.
import Settings
import Support

/// Text from answers.
public enum Reports {
    /// One cell: text unchanged, null as "-", nested values as JSON.
    static func cell(_ value: JSON?) -> String {
        switch value {
        case nil, .null?: "-"
        case .string(let text)?: text
        case .number(let digits)?: digits
        case .bool(let flag)?: flag ? "yes" : "no"
        case .some(let other): other.serialized
        }
    }

    /// All VBDs, one line each.
    public static func list(_ answer: JSON) -> [String] {
        var table = TextTable([
            .numbers("DOMID"), .words("DEVICE"), .words("KIND"), .words("WORKER"), .numbers("PID"), .words("STATE"),
            .words("MODE"), .words("FORMAT"), .words("PATH"), .words("TROUBLE"),
        ])
        for vbd in answer["vbds"]?.elements ?? [] {
            let names = ["domid", "device", "kind", "worker", "pid", "state", "mode", "format", "path"]
            // What is wrong with the worker is more than how it came to be.
            let worker = ["silent", "stalled"].first { vbd[$0]?.string != nil } ?? cell(vbd["worker"])
            table.append(names.map { $0 == "worker" ? worker : cell(vbd[$0]) } + [vbd["trouble"]?.string ?? ""])
        }
        return table.lines
    }

    /// Members of an object, one per line; members of nested objects as "outer.inner".
    public static func show(_ answer: JSON) -> [String] {
        var table = TextTable([.words(""), .words("")])
        for member in answer.members {
            if let text = summary(member) {
                table.append([member.name, text])
            } else if case .object(let inner) = member.value {
                // Of nineteen settings of limits those that are set: the others are no news.
                for nested in inner where !(isLimit(nested.name) && nested.value.unsigned == 0) {
                    table.append(["\(member.name).\(nested.name)", cell(nested.value)])
                }
            } else {
                table.append([member.name, cell(member.value)])
            }
        }
        return table.lines
    }

    private static func isLimit(_ name: String) -> Bool {
        SettingsSchema.limits.contains { $0.declarations.contains { $0.oldName == name } }
            || name == SettingsSchema.limitRequestSize.declaration.oldName
    }

    /// Members that are told in other words than their JSON: errors of the storage, and since when a disk waits.
    private static func summary(_ member: JSON.Member) -> String? {
        let value = member.value
        switch (member.name, value) {
        case ("errors", .array(let counts)):
            if counts.isEmpty { return "-" }
            return counts.map { "\(cell($0["operation"])) \(cell($0["errno"])) \(cell($0["count"]))" }
                .joined(separator: ", ")
        case ("last_error", .object):
            return "\(LocalTime.text(value["time"])) \(cell(value["operation"])) at sector \(cell(value["sector"])): "
                + "\(cell(value["text"])) (\(cell(value["errno"])))"
        case ("stopped", .object):
            return "\(cell(value["reason"])), \(cell(value["requests"])) requests wait since "
                + LocalTime.text(value["since"])
        default: return nil
        }
    }

    /// Counters and latencies. With the `earlier` answer from `seconds` ago, also the growth of each counter per
    /// second.
    public static func stats(_ answer: JSON, earlier: JSON? = nil, seconds: Double = 1) -> [String] {
        counters(answer, earlier: earlier, seconds: seconds) + [""] + latencies(answer) + troubles(answer)
    }

    /// Errors of the storage and what the plugin counts, where there are any.
    private static func troubles(_ answer: JSON) -> [String] {
        var table = TextTable([.words(""), .words("")])
        for member in answer.members where ["errors", "last_error", "stopped"].contains(member.name) {
            if let text = summary(member), text != "-" { table.append([member.name, text]) }
        }
        return (table.lines.isEmpty ? [] : [""] + table.lines) + plugin(answer["plugin"])
    }

    /// What the plugin counts by itself.
    private static func plugin(_ answer: JSON?) -> [String] {
        guard let answer, let name = answer["name"]?.string else { return [] }
        if let error = answer["error"]?.string { return ["", TextTable.printable("plugin \(name): \(error)")] }
        var table = TextTable([.words("PLUGIN \(TextTable.printable(name))"), .numbers("TOTAL")])
        for counter in answer["counters"]?.members ?? [] { table.append([counter.name, cell(counter.value)]) }
        return [""] + table.lines
    }

    private static func counters(_ answer: JSON, earlier: JSON?, seconds: Double) -> [String] {
        let queues = answer["queues"]?.elements ?? []
        let showsQueues = queues.count > 1
        var columns: [TextTable.Column] = [.words("COUNTER"), .numbers("TOTAL")]
        if earlier != nil { columns.append(.numbers("PER-SECOND")) }
        if showsQueues { columns += queues.indices.map { .numbers("QUEUE-\($0)") } }
        var table = TextTable(columns)
        for counter in answer["totals"]?.members ?? [] {
            var cells = [counter.name, cell(counter.value)]
            if let earlier {
                cells.append(rate(counter.value, earlier["totals"]?[counter.name], seconds: seconds))
            }
            if showsQueues { cells += queues.map { cell($0[counter.name]) } }
            table.append(cells)
        }
        return table.lines
    }

    /// The growth of a counter per second, rounded; "-" if it did not grow or is not known.
    static func rate(_ now: JSON, _ before: JSON?, seconds: Double) -> String {
        guard let now = now.unsigned, let before = before?.unsigned, now > before, seconds > 0 else { return "-" }
        let rate = (Double(now - before) / seconds).rounded()
        return rate < 1e18 ? String(UInt64(rate)) : "-"
    }

    private static func latencies(_ answer: JSON) -> [String] {
        let fields = ["p50", "p90", "p99", "p999", "max"]
        var table = TextTable([.words("LATENCY"), .numbers("COUNT")] + fields.map { .numbers($0) })
        for operation in answer["latency_ns"]?.members ?? [] {
            let count = operation.value["count"]
            let isEmpty = count?.unsigned == 0
            table.append(
                [operation.name, cell(count)] + fields.map { isEmpty ? "-" : duration(operation.value[$0]) })
        }
        return table.lines
    }

    /// Nanoseconds, in the unit that leaves one to three digits before the decimal point.
    static func duration(_ value: JSON?) -> String {
        guard let nanoseconds = value?.unsigned else { return cell(value) }
        switch nanoseconds {
        case ..<1000: return "\(nanoseconds)ns"
        case ..<1_000_000: return tenths(nanoseconds, unit: 1000) + "us"
        case ..<1_000_000_000: return tenths(nanoseconds, unit: 1_000_000) + "ms"
        default: return tenths(nanoseconds, unit: 1_000_000_000) + "s"
        }
    }

    private static func tenths(_ value: UInt64, unit: UInt64) -> String {
        "\(value / unit).\(value % unit * 10 / unit)"
    }

    /// Lines of xbbd's log with their local time.
    public static func log(_ answer: JSON) -> [String] {
        (answer["events"]?.elements ?? []).map { event in
            let level = event["level"]?.string ?? ""
            let text = TextTable.printable(cell(event["text"]))
            return "\(LocalTime.text(event["time"])) \(level == "info" ? "" : level + ": ")\(text)"
        }
    }

    /// All plugins, each with its options.
    public static func plugins(_ answer: JSON) -> [String] {
        var lines: [String] = []
        for plugin in answer["plugins"]?.elements ?? [] {
            if !lines.isEmpty { lines.append("") }
            let name = TextTable.printable(cell(plugin["name"]))
            if let error = plugin["error"]?.string {
                lines.append("\(name): cannot be loaded: \(TextTable.printable(error))")
                continue
            }
            let summary = TextTable.printable(cell(plugin["description"]))
            lines.append("\(name) \(TextTable.printable(cell(plugin["version"]))): \(summary)")
            let formats = (plugin["formats"]?.elements ?? []).map { cell($0) }.joined(separator: " ")
            var table = TextTable([.words(""), .words("")])
            table.append(["  formats", formats.isEmpty ? "-" : formats])
            for name in ["thread_model", "blocking", "read_only", "path"] {
                if let value = plugin[name] { table.append(["  \(name)", cell(value)]) }
            }
            for note in plugin["yields"]?.elements ?? [] { table.append(["  note", cell(note)]) }
            lines += table.lines + options(plugin["options"]?.elements ?? [])
        }
        return lines
    }

    private static func options(_ options: [JSON]) -> [String] {
        if options.isEmpty { return [] }
        var table = TextTable([.words("  OPTION"), .words("TYPE"), .words("DEFAULT"), .words("HELP")])
        for option in options {
            table.append(["  " + cell(option["name"])] + ["type", "default", "help"].map { cell(option[$0]) })
        }
        return table.lines
    }
}
