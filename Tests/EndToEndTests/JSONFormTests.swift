// SPDX-License-Identifier: BSD-2-Clause
// What each command prints with --json, beside what xbb-json(7) says of it: a member that is new, lost or of another type fails.
import Base
import Blkfront
import Foundation
import Support
import Testing

@testable import XBBControl

/// What xbb-json(7) says of the members of a command's answer.
struct DocumentedForm {
    /// One line of the page.
    struct Member {
        let types: [String]
        let isOptional: Bool
    }

    private let members: [String: Member]
    /// Places in the order of the page.
    private let places: [String]

    /// The sections of the page, by their headings; "" for what is printed of errors.
    static func all() throws -> [String: DocumentedForm] {
        let page = try String(contentsOfFile: "\(packageDirectory)/docs/man/xbb-json.7", encoding: .utf8)
        var forms: [String: [(place: String, member: Member)]] = [:]
        var (section, isInside) = ("", false)
        for line in page.split(separator: "\n", omittingEmptySubsequences: false) {
            if line == ".Sh ERRORS" { section = "error" }
            if line.hasPrefix(".Ss ") { section = String(line.dropFirst(4)) }
            if line.hasPrefix(".Sh EXAMPLES") { break }
            if line.hasPrefix(".Bd") || line == ".Ed" {
                isInside = line != ".Ed"
                continue
            }
            // What is continued begins with a space.
            guard isInside, !line.hasPrefix(" ") else { continue }
            let words = line.split(separator: " ").map(String.init)
            let kind = try #require(words.dropFirst().first, "\(line)")
            let type = kind.hasSuffix("?") ? String(kind.dropLast()) : kind
            try #require(
                ["string", "integer", "number", "boolean", "object", "any"].contains(type), "\(section): \(line)")
            let member = Member(
                types: kind.hasSuffix("?") ? [type, "null"] : [type],
                isOptional: words.dropFirst(2).first?.hasPrefix("optional") == true)
            let isTwice = forms[section]?.contains { $0.place == words[0] } == true
            #expect(!isTwice, "\(section): \(words[0]) stands there twice")
            forms[section, default: []].append((words[0], member))
        }
        return forms.mapValues { lines in
            DocumentedForm(
                members: Dictionary(lines.map { ($0.place, $0.member) }) { $1 }, places: lines.map(\.place))
        }
    }

    /// What of an answer is not as the page says, as sentences.
    func differences(_ answer: JSON) -> [String] {
        var problems: [String] = []
        if answer["json_version"]?.unsigned != UInt64(JSONForm.version) { problems.append("json_version is missing") }
        compare(.object(answer.members.filter { $0.name != "json_version" }), at: "", &problems)
        return problems
    }

    private func compare(_ value: JSON, at path: String, _ problems: inout [String]) {
        switch value {
        case .object(let found):
            let names = children(of: path)
            for entry in found {
                let inner = path.isEmpty ? entry.name : "\(path).\(entry.name)"
                if names.contains(entry.name) {
                    check(entry.value, at: inner, &problems)
                } else if names.contains("*") {
                    check(entry.value, at: path.isEmpty ? "*" : "\(path).*", &problems)
                } else {
                    problems.append("\(inner) is not documented")
                }
            }
            for name in names where name != "*" && !found.contains(where: { $0.name == name }) {
                let inner = path.isEmpty ? name : "\(path).\(name)"
                if !isOptional(inner) { problems.append("\(inner) is documented, and not there") }
            }
        case .array(let elements):
            for element in elements { check(element, at: "\(path)[]", &problems) }
        default: break
        }
    }

    private func check(_ value: JSON, at path: String, _ problems: inout [String]) {
        if members[path]?.types[0] == "any" { return }
        if let member = members[path], member.types[0] != "object" || value == .null {
            let type = Self.type(of: value)
            // A number may be whole.
            let fits = member.types.contains(type) || type == "integer" && member.types.contains("number")
            if !fits { problems.append("\(path) is \(type), and documented as \(member.types)") }
            return
        }
        if members[path] == nil, children(of: path).isEmpty, !hasElements(path) {
            return problems.append("\(path) is not documented")
        }
        switch value {
        case .object, .array: compare(value, at: path, &problems)
        default: problems.append("\(path) is \(Self.type(of: value)), and documented as more than that")
        }
    }

    /// The names of members of an object that are documented.
    private func children(of path: String) -> Swift.Set<String> {
        var names: Swift.Set<String> = []
        for key in members.keys {
            guard path.isEmpty || key.hasPrefix(path + ".") else { continue }
            let rest = path.isEmpty ? key[...] : key.dropFirst(path.count + 1)
            names.insert(String(rest.prefix { $0 != "." && $0 != "[" }))
        }
        return names
    }

    private func hasElements(_ path: String) -> Bool { members.keys.contains { $0.hasPrefix(path + "[]") } }

    /// Whether what is documented at a place may be absent: the first line of it or below it says so.
    private func isOptional(_ path: String) -> Bool {
        let first = places.first { $0 == path || $0.hasPrefix(path + "[]") || $0.hasPrefix(path + ".") }
        return first.flatMap { members[$0]?.isOptional } == true
    }

    private static func type(of value: JSON) -> String {
        switch value {
        case .string: "string"
        case .number(let digits): UInt64(digits) == nil ? "number" : "integer"
        case .bool: "boolean"
        case .null: "null"
        case .object: "object"
        case .array: "array"
        }
    }
}

extension EndToEnd {
    @Suite struct JSONFormTests {
        @Test func whatIsPrintedIsWhatIsDocumented() throws {
            let forms = try DocumentedForm.all()
            let folder = try makeTemporaryDirectory("json")
            let lab = try LibxlLab(options: ["--backing-dir", folder])
            try Lab.describePlugins(in: lab.plugins)
            let guest = try lab.guest()
            try lab.store.write("/local/domain/\(guest.id)/name", "web")
            var seen: Swift.Set<String> = []
            @discardableResult
            func look(_ command: String, as form: String? = nil) throws -> JSON {
                let name = form ?? String(command.prefix { $0 != " " })
                seen.insert(name)
                let (_, text) = try lab.xbbctl(
                    "\(command) --json --socket '\(lab.directory)/run/xbbd.sock' 2>/dev/null")
                // What was said on standard error may stand before it.
                let line = text.split(separator: "\n").first { $0.hasPrefix("{") }.map(String.init) ?? ""
                let answer = try #require(try? JSON(parsing: line), "\(command): \(text)")
                let documented = try #require(forms[name], "\(name) is not in xbb-json(7)")
                #expect(documented.differences(answer) == [], "\(command): \(line)")
                return answer
            }
            // Images, of which a worker knows nothing.
            let base = "\(folder)/base.img"
            try LibxlLab.shell("truncate -s 16M '\(base)'")
            let (image, other) = ("\(folder)/a.qcow2", "\(folder)/b.qcow2")
            try LibxlLab.shell("qemu-img create -q -f qcow2 -b '\(base)' -F raw '\(image)'")
            try LibxlLab.shell("qemu-img create -q -f qcow2 '\(other)' 16M")
            let files = "--plugin-dir '\(lab.plugins)' --state-dir '\(lab.directory)/state'"
            try look("probe '\(image)' \(files)")
            try look("inspect '\(image)' \(files) --backing-dir '\(folder)'")
            try look("inspect '\(image)' \(files) --backing-dir /nowhere")
            try look("inspect '\(base)' \(files) --format raw")
            try look("inspect '\(other)' \(files) --compare", as: "inspect --compare")
            try look("plugins")
            try look("list")
            // A disk's life.
            let disk = "\(guest.id) xvda"
            try look("attach \(disk) raw:\(base)")
            try look("show \(disk)")
            try look("stats \(disk)")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: "raw:\(base)"), guest)
            #expect(try verifiedLoad(device, count: 100).isGood)
            for command in ["list", "show \(disk)", "stats \(disk)", "events", "log", "wait \(disk) connected"] {
                try look(command)
            }
            // What look() appends goes to true(1), which takes it.
            let socket = "'\(lab.directory)/run/xbbd.sock'"
            try look(
                "events --since 1 --follow --json --socket \(socket) & sleep 2; kill -KILL $!; true",
                as: "events --follow")
            try look("top --iterations 1 --interval 0.1")
            try look("set \(disk) poll-us=0 total-iops-sec=100000")
            try look("show \(disk)")
            try look("pause \(disk)")
            try look("resume \(disk)")
            try look("snapshot \(disk) '\(folder)/over.qcow2'")
            try look("changed \(guest.id)/xvda")
            try look("rebase \(disk) --below raw:\(base)")
            try look("commit \(disk)")
            try look("swap \(disk) --image qcow2:\(other)")
            try look("changed '\(image)'")
            try look("resize \(disk) +1M")
            try look("pause \(disk) --release")
            try look("list")
            try look("resume \(disk)")
            try look("wait \(disk) running")
            try device.close()
            try look("detach \(disk)")
            try look("attach \(disk) empty: --cdrom")
            try look("show \(disk)")
            try look("insert \(disk) raw:\(base)")
            try look("eject \(disk)")
            try look("eject \(disk)")
            try look("detach \(disk)")
            try look("wait \(disk) detached")
            try look("show \(disk)", as: "error")
            try look("frobnicate", as: "error")
            #expect(seen == Swift.Set(forms.keys), "not tried: \(Swift.Set(forms.keys).subtracting(seen))")
            lab.stop()
        }
    }
}
