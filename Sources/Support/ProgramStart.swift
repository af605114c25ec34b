// SPDX-License-Identifier: BSD-2-Clause
// Starts a program with arguments from Swift.
import CLinux
import Glibc

/// Starts `program` with clinux_spawn(); `arguments` begins with the program's name. `output` becomes its standard
/// output, `kept` its descriptor 3, `second` its descriptor 4 and `third` its descriptor 5; -1 for none. Returns 0 and the child's number, or an
/// errno.
public func startProgram(
    _ program: String, _ arguments: [String], output: Int32 = -1, kept: Int32 = -1, second: Int32 = -1,
    third: Int32 = -1
) -> (code: Int32, process: pid_t) {
    var list: [UnsafeMutablePointer<CChar>?] = unsafe arguments.map { unsafe strdup($0) } + [nil]
    defer { for index in unsafe list.indices { unsafe free(list[index]) } }
    var process: pid_t = 0
    let code = unsafe clinux_spawn(program, &list, output, kept, second, third, &process)
    return (code, process)
}
