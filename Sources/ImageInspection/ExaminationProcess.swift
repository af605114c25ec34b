// SPDX-License-Identifier: BSD-2-Clause
// Another process of this program, which looks at an image that nobody trusts and answers as JSON.
import Base
import Support

/// Processes of this program that look at one image each.
struct OwnProcess {
    /// How long the look at one image may take, in seconds.
    private static let patience: UInt64 = 10

    let pluginDirectories: [String]
    let stateDirectory: String?

    /// Starts one with the option `question`, "--probe" or "--inspect", and waits for its answer, an object; one with the
    /// member "error" is an answer too.
    func ask(_ question: String, about image: String, _ more: [String] = []) throws(OperationError) -> JSON {
        var arguments = ["/proc/self/exe", question, image]
        for directory in pluginDirectories { arguments += ["--plugin-dir", directory] }
        if let stateDirectory { arguments += ["--state-dir", stateDirectory] }
        let result: ChildProgram.Result
        do throws(ChildProgram.StartError) {
            result = try ChildProgram.run(arguments + more, seconds: Self.patience)
        } catch {
            throw OperationError(.open, "cannot start a process to look at \(image): \(errnoText(error.code))")
        }
        guard result.problem == nil, let answer = try? JSON(parsing: result.output) else {
            throw OperationError(.open, "the process that looked at \(image) \(result.problem ?? "gave no answer")")
        }
        return answer
    }
}
