// SPDX-License-Identifier: BSD-2-Clause
// The list of checks: each one checks one property of a plugin, in its own process.

/// One property of a plugin.
package struct Check: Sendable {
    /// Groups of checks, in the order in which they run.
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

    /// What a check needs before it can run.
    package enum Need: Sendable {
        /// Only the file.
        case file
        /// The plugin must be loadable.
        case library
        /// A disk, and so an image if the plugin needs one.
        case disk
    }

    package let group: Group
    /// Unique in its group.
    package let name: String
    /// The property that holds if it passes.
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

    /// All checks, in order.
    package static let all: [Check] = [
        linkage, table, probe, open, operations, data, ownership, phases, concurrency, acceptance, cancel, resize,
        mutation, crash, figures,
    ].flatMap { $0 }
}
