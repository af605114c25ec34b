// SPDX-License-Identifier: BSD-2-Clause
// What can be checked: one property of a plugin, in a process of its own.

/// One property of a plugin.
package struct Check: Sendable {
    /// Checks that belong together, in the order in which they are made.
    package enum Group: String, CaseIterable, Sendable {
        case linkage
        case table
        case probe
        case open
        case operations
        case data
        case ownership
        case phases
        case concurrency
        case acceptance
        case cancel
        case resize
        case mutation
        case crash
        case figures
    }

    /// What a check needs to be possible.
    package enum Need: Sendable {
        /// Only the file.
        case file
        /// That it can be loaded.
        case library
        /// A disk, and so an image where the plugin has one.
        case disk
    }

    package let group: Group
    /// Unique in its group.
    package let name: String
    /// What holds where it passes.
    package let summary: String
    package let need: Need
    let body: @Sendable (Bench) throws(Failure) -> Void

    /// "group.name".
    package var identifier: String { "\(group.rawValue).\(name)" }

    init(
        _ group: Group, _ name: String, _ summary: String, need: Need = .disk,
        _ body: @escaping @Sendable (Bench) throws(Failure) -> Void
    ) {
        self.group = group
        self.name = name
        self.summary = summary
        self.need = need
        self.body = body
    }

    /// All, in their order.
    package static let all: [Check] = [
        linkage, table, probe, open, operations, data, ownership, phases, concurrency, acceptance, cancel, resize,
        mutation, crash, figures,
    ].flatMap { $0 }
}
