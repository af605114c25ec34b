// SPDX-License-Identifier: BSD-2-Clause
// Signals for people.
import CLinux

/// The words for a signal that ended a process.
public enum SignalName {
    /// "signal 11 (SIGSEGV)"; a real-time signal has a number alone.
    public static func text(_ signal: Int32) -> String {
        guard let name = unsafe clinux_signal_name(signal) else { return "signal \(signal)" }
        return unsafe "signal \(signal) (SIG\(String(cString: name)))"
    }
}
