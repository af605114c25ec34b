// SPDX-License-Identifier: BSD-2-Clause
// Text as a log may show it.
import Base

extension String {
    /// The same text with '?' in the place of each control character: nobody forges a line or moves a cursor by what is logged.
    var withoutControlCharacters: String {
        guard hasControlCharacters else { return self }
        var shown = String.UnicodeScalarView()
        for scalar in unicodeScalars { shown.append(String(scalar).hasControlCharacters ? "?" : scalar) }
        return String(shown)
    }
}
