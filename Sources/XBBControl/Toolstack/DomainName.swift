// SPDX-License-Identifier: BSD-2-Clause
// Domains as people say them: by number or by name.
import Base
public import Xen

/// Finds domains by their names.
public enum DomainName {
    /// The number that `text` is; nil if it is none, so that it is a name.
    public static func number(_ text: String) -> DomainID? { DecimalText.domain(text) }

    /// True for digits, which are never taken for a name.
    public static func isNumeric(_ text: String) -> Bool {
        !text.isEmpty && text.utf8.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
    }

    /// The domain that is called `name`. Throws if there is none, or more than one.
    public static func find(_ name: String, in store: any XenStore) throws(ControlError) -> DomainID {
        let found = try asControlError { () throws(OperationError) -> [DomainID] in
            try all(in: store).filter { $0.name == name }.map(\.domain)
        }
        guard let domain = found.first else {
            throw ControlError("there is no domain '\(name)': 'xl list' shows those that there are")
        }
        guard found.count == 1 else {
            let numbers = found.map { "\($0)" }.joined(separator: ", ")
            throw ControlError("there is more than one domain '\(name)': \(numbers); say which by its number")
        }
        return domain
    }

    /// All domains, by number; those without a name have "".
    public static func all(in store: any XenStore) throws(OperationError) -> [(domain: DomainID, name: String)] {
        var found: [(domain: DomainID, name: String)] = []
        for text in try store.childrenIfPresent("/local/domain") {
            guard let domain = DecimalText.domain(text) else { continue }
            let name = try store.valueIfReadable("/local/domain/\(domain)/name")
            found.append((domain, name.map { String(decoding: $0, as: UTF8.self) } ?? ""))
        }
        return found.sorted { $0.domain < $1.domain }
    }
}
