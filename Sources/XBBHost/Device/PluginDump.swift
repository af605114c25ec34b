// SPDX-License-Identifier: BSD-2-Clause
// What `xbbctl plugins` shows: each plugin's description, as the plugin itself gives it.
import Support

extension PluginLibrary {
    /// A description of every plugin in the directories; one that cannot be loaded is listed with its error.
    public static func dump(directories: [String]) -> JSON {
        .array(
            names(in: directories).map { name in
                do throws(PluginError) {
                    let library = try load(name: name, directories: directories)
                    return library.json
                } catch {
                    return .object([("name", .string(name)), ("error", .string(error.description))])
                }
            })
    }

    private var json: JSON {
        .object([
            ("name", .string(name)), ("version", .string(version)), ("description", .string(summary)),
            ("formats", .array(formats.map { .string($0) })), ("path", .string(path)),
            ("thread_model", .string("\(threadModel)")), ("blocking", .bool(isBlocking)),
            ("read_only", .bool(isReadOnly)),
            (
                "options",
                .array(
                    options.map { option in
                        .object([
                            ("name", .string(option.name)), ("type", .string(option.kind.word)),
                            ("default", option.defaultText.map { .string($0) } ?? .null),
                            ("help", .string(option.help)),
                        ])
                    })
            ),
        ])
    }
}
