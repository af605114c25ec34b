// SPDX-License-Identifier: BSD-2-Clause
// Why a check did not pass.
import Base

/// What is wrong and what to do about it, or why there is nothing to check.
package struct Failure: Error, CustomStringConvertible {
    /// One line.
    package let description: String
    /// The negative errno that caused it, if any.
    package var code: Int32 = 0
    /// The plugin refused something as the ABI allows: with an errno and a message.
    package var isRefusal = false
    /// Nothing is wrong; there is only nothing to check.
    package var isSkip = false

    package init(_ description: String, code: Int32 = 0) {
        self.description = description
        self.code = code
    }

    package init(description: String, code: Int32 = 0) { self.init(description, code: code) }

    init(_ error: OperationError) { self.init(error.description) }

    /// The same with advice behind it.
    func with(_ advice: String) -> Failure {
        var failure = Failure("\(description); \(advice)", code: code)
        (failure.isRefusal, failure.isSkip) = (isRefusal, isSkip)
        return failure
    }

    /// There is nothing to check, and why.
    static func skip(_ reason: String) -> Failure {
        var failure = Failure(reason)
        failure.isSkip = true
        return failure
    }
}

/// Throws if the condition does not hold.
func require(_ condition: Bool, _ otherwise: @autoclosure () -> String) throws(Failure) {
    if !condition { throw Failure(otherwise()) }
}
