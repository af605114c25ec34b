// SPDX-License-Identifier: BSD-2-Clause
// The command line of xbb-loopback.
import ArgumentParser
import Glibc
import Support
import Xen
import XenLoopback

struct Loopback: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "xbb-loopback",
        abstract: "A Xen of one's own: XenStore, grant tables and event channels in shared memory.",
        discussion: """
            Everything meets in one directory: $XBB_LOOPBACK, or /run/xbb-loopback. XENSTORED_PATH=DIR/xenstored.sock \
            lets the tools of Xen in as domain 0, DIR/xenstored-N.sock as domain N.
            Exit status: 0 done, 1 failed, 64 wrong usage.
            """,
        version: "xbb-loopback \(xbbVersion)",
        subcommands: [Run.self, Domain.self])
}

/// The hypervisor's directory.
struct Place: ParsableArguments {
    @Option(name: [.customLong("dir"), .customLong("directory")], help: "The directory of the sockets.")
    var directory = LoopbackXen.defaultDirectory
}

/// Makes and inspects domains.
struct Domain: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make, destroy and list domains.", subcommands: [Create.self, Destroy.self, List.self],
        defaultSubcommand: List.self)

    struct Create: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a domain, which stays until it is destroyed, and print its number.")

        @OptionGroup var place: Place
        @Argument(help: "The domain's number; by default the next free one.")
        var domain: UInt16?
        @Option(help: "Pages of 4096 bytes; they take up space when they are touched.")
        var pages = 65536
        @Option(help: "Entries of the grant table.")
        var grantEntries = 32768

        func run() throws {
            let control = try LoopbackControl(directory: place.directory)
            print(try control.createDomain(domain, pages: pages, grantEntries: grantEntries))
        }
    }

    struct Destroy: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Destroy a domain.")

        @OptionGroup var place: Place
        @Argument(help: "The domain's number.")
        var domain: UInt16

        func run() throws {
            try LoopbackControl(directory: place.directory).destroyDomain(domain)
        }
    }

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List domains with what they grant and what others use.",
            discussion: "A domain that is destroyed while others map its pages is listed as dying until they let go.")

        @OptionGroup var place: Place
        @Flag(help: "As JSON.")
        var json = false

        func run() throws {
            let domains = try LoopbackControl(directory: place.directory).domains()
            print(json ? jsonText(domains) : table(domains))
        }
    }
}

/// The names and numbers of a report, in order.
private func fields(_ domain: LoopbackDomainReport) -> [(name: String, value: Int)] {
    [
        ("pages", domain.pages), ("grant_entries", domain.grantEntries), ("granted", domain.grantedReferences),
        ("mapped", domain.mappedGrants), ("copying", domain.copyingReferences), ("frontends", domain.frontends),
        ("grant_handles", domain.grantHandles), ("ports_unbound", domain.unboundPorts),
        ("ports_bound", domain.boundPorts),
    ]
}

private func state(_ domain: LoopbackDomainReport) -> String {
    domain.isAlive ? "running" : "dying"
}

private func jsonText(_ domains: [LoopbackDomainReport]) -> String {
    let objects = domains.map { domain in
        let numbers = fields(domain).map { "\"\($0.name)\": \($0.value)" }.joined(separator: ", ")
        return "  {\"domid\": \(domain.id), \"state\": \"\(state(domain))\", "
            + "\"destroy_on_exit\": \(domain.isDestroyedOnExit), \(numbers)}"
    }
    return "[\n" + objects.joined(separator: ",\n") + "\n]"
}

private func table(_ domains: [LoopbackDomainReport]) -> String {
    guard let first = domains.first else { return "" }
    func line(_ cells: [String]) -> String {
        cells.enumerated().map { index, cell in
            String(repeating: " ", count: max((index == 0 ? 5 : 14) - cell.count, 0)) + cell
        }.joined()
    }
    let head = line(["domid", "state"] + fields(first).map { $0.name.replacingUnderscores() })
    let rows = domains.map { domain in
        line(["\(domain.id)", state(domain)] + fields(domain).map { "\($0.value)" })
    }
    return ([head] + rows).joined(separator: "\n")
}

extension String {
    fileprivate func replacingUnderscores() -> String {
        String(map { $0 == "_" ? "-" : $0 })
    }
}
