// SPDX-License-Identifier: BSD-2-Clause
// Asks a worker program about an image that nobody serves. It looks at it in a process without rights.
import Base
import Support

/// What is to be known of an image.
public enum ImageQuestion: Sendable, Equatable {
    /// Which formats its content looks like.
    case probe
    /// What is in it, as `format`; nil: as what it was served, else what it looks like. With what is in the images below
    /// it that are in the directories.
    case inspect(format: String?, backingDirectories: [String])
    /// What two readers of its plugin say of all of its bytes, as `format`. It takes as long as the image is large, and shows on
    /// standard error how far it is where that is a terminal.
    case compare(format: String?)

    /// How long the program may take, in seconds; a chain has many images.
    private var patience: UInt64 {
        switch self {
        case .probe: 10
        case .inspect: 60
        case .compare: 30 * 86400
        }
    }

    /// Asks; the answer is an object. Throws what is wrong with the image, or with the program.
    public func ask(
        about path: String, worker: String, pluginDirectories: [String], stateDirectory: String
    ) throws(ControlError) -> ControlAnswer {
        var arguments = [worker, self == .probe ? "--probe" : "--inspect", path, "--state-dir", stateDirectory]
        for directory in pluginDirectories { arguments += ["--plugin-dir", directory] }
        if case .inspect(let format, let backingDirectories) = self {
            arguments.append("--chain")
            if let format { arguments += ["--format", format] }
            for directory in backingDirectories { arguments += ["--backing-dir", directory] }
        }
        if case .compare(let format) = self {
            arguments.append("--compare")
            if let format { arguments += ["--format", format] }
        }
        let result: ChildProgram.Result
        do throws(ChildProgram.StartError) {
            result = try ChildProgram.run(arguments, seconds: patience)
        } catch {
            throw ControlError("cannot start \(worker): \(errnoText(error.code))")
        }
        if let problem = result.problem {
            throw ControlError("the process that looked at \(path) \(problem)")
        }
        return try ControlAnswer(line: result.output.filter { $0 != UInt8(ascii: "\n") })
    }
}
