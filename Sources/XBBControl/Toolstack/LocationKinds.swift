// SPDX-License-Identifier: BSD-2-Clause
// What stands behind a format: a path, or text for the plugin, as the plugins' descriptions say.
public import Support

/// Of which formats the location is opaque: what `xbbctl plugins` prints, by which xbbd's workers choose.
public struct LocationKinds: Sendable {
    private let plugins: [JSON]

    /// What an answer to `.plugins` says.
    public init(_ answer: JSON) { plugins = answer["plugins"]?.elements ?? [] }

    /// All formats whose plugins open no file.
    public var opaqueFormats: Set<String> {
        Set(plugins.flatMap { $0["formats"]?.elements ?? [] }.compactMap(\.string).filter(isOpaque))
    }

    /// True where the format's plugin opens no file. Of two plugins for a format the one that is called after it counts.
    public func isOpaque(_ format: String) -> Bool {
        let serving = plugins.filter { $0["formats"]?.elements.contains { $0.string == format } ?? false }
        let plugin = serving.first { $0["name"]?.string == format } ?? serving.first
        return plugin?["location"]?.string.map { $0 == "opaque" } ?? (plugin?["needs_file"] == .bool(false))
    }
}
