// SPDX-License-Identifier: BSD-2-Clause
// Another process of this program, which looks at an image that nobody trusts and answers as JSON.
import Support
import Xen

enum OwnProcess {
    /// Starts this program with `arguments` and waits for its answer, an object; one with the member "error" is an answer too.
    static func ask(_ arguments: [String], about image: String, seconds: UInt64) throws(PluginError) -> JSON {
        let result: ChildProgram.Result
        do throws(ChildProgram.StartError) {
            result = try ChildProgram.run(["/proc/self/exe"] + arguments, seconds: seconds)
        } catch {
            throw PluginError(.open, "cannot start a process to look at \(image): \(errnoText(error.code))")
        }
        guard result.problem == nil, let answer = try? JSON(parsing: result.output) else {
            throw PluginError(.open, "the process that looked at \(image) \(result.problem ?? "gave no answer")")
        }
        return answer
    }
}
