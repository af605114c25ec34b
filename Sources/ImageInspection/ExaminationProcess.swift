// SPDX-License-Identifier: BSD-2-Clause
// Another process of this program that examines an untrusted image and answers in JSON.
import Base
import Support

/// Runs this program to examine one image at a time.
struct ExaminationProcess {
    /// The longest that one examination may take, in seconds.
    private static let timeLimit: UInt64 = 10

    let pluginDirectories: [String]
    let stateDirectory: String?

    /// Starts a process with the option `question`, "--probe" or "--inspect", and waits for its answer, a JSON object.
    /// An object with a member "error" is an answer too.
    func ask(_ question: String, about image: String, _ more: [String] = []) throws(OperationError) -> JSON {
        var arguments = ["/proc/self/exe", question, image]
        for directory in pluginDirectories { arguments += ["--plugin-dir", directory] }
        if let stateDirectory { arguments += ["--state-dir", stateDirectory] }
        let result: ChildProgram.Result
        do throws(ChildProgram.StartError) {
            result = try ChildProgram.run(arguments + more, seconds: Self.timeLimit)
        } catch {
            throw OperationError(.open, "cannot start a process to look at \(image): \(errnoText(error.code))")
        }
        guard result.problem == nil, let answer = try? JSON(parsing: result.output) else {
            throw OperationError(.open, "the process that looked at \(image) \(result.problem ?? "gave no answer")")
        }
        return answer
    }
}
