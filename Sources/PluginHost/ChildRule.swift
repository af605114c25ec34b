// SPDX-License-Identifier: BSD-2-Clause
// Which plugin may stand below which: decided here for the worker that opens a chain and for those who look at one. Pure.
import Base

/// The rule for files that an image names.
package enum ChildRule {
    /// Why the file at `path`, which plugin `child` serves as `format`, cannot lie below an image of plugin `parent`; nil: it can.
    ///
    /// A plugin reads its own formats by itself. Between two plugins there are requests, for which both have to block.
    package static func problem(
        of child: (name: String, isBlocking: Bool), below parent: (name: String, isBlocking: Bool, formats: [String]),
        _ format: String, _ path: String
    ) -> String? {
        if child.name == parent.name || parent.isBlocking && child.isBlocking { return nil }
        let file =
            "the backing file \(BackingName.shown(path)) is of format '\(format)', which plugin '\(child.name)' serves"
        if parent.isBlocking { return "\(file), and only for images of its own formats" }
        return "\(file); plugin '\(parent.name)' reads backing files that are raw or of its own formats only: "
            + parent.formats.joined(separator: ", ")
    }
}

extension PluginCatalog {
    /// Why the file at `path` cannot lie below an image of format `above`, by the plugins' descriptions; nil: it can, or a plugin
    /// has no description.
    package func problem(of format: String, below above: String, _ path: String) throws(OperationError) -> String? {
        if format == "raw" || above == "raw" { return nil }
        let (child, parent) = (try plugin(serving: format), try plugin(serving: above))
        guard let below = entries.first(where: { $0.name == child })?.description,
            let top = entries.first(where: { $0.name == parent })?.description
        else { return nil }
        guard below.location == .file else { return "plugin '\(child)' cannot serve a backing file" }
        return ChildRule.problem(
            of: (child, below.isBlocking), below: (parent, top.isBlocking, top.formats), format, path)
    }
}
