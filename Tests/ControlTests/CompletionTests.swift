// SPDX-License-Identifier: BSD-2-Clause
// Completion in the shells themselves.
import Glibc
import Support
import Testing

@testable import XBBControl

@Suite struct CompletionTests {
    private static let package = InstallPaths.folder(of: InstallPaths.folder(of: InstallPaths.folder(of: #filePath)))

    private static func has(_ shell: String) -> Bool { access("/usr/bin/\(shell)", X_OK) == 0 }

    /// A guest "web" with the disk xvda, and an image.
    private func lab() throws -> DaemonLab {
        let lab = try DaemonLab()
        try lab.store.write("/local/domain/1/name", "web")
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        lab.put("disk.img", "x")
        return lab
    }

    private func run(_ lab: DaemonLab, _ shell: String, _ script: String) throws -> [String] {
        let program = try Program(
            ["/usr/bin/env", "PATH=\(DaemonLab.products):/usr/bin:/bin", "TERM=dumb", "HOME=\(lab.root)", shell]
                + (shell == "zsh" ? ["-f"] : shell == "fish" ? ["--no-config"] : ["--norc"]) + ["-c", script],
            capture: true)
        return program.text().split { $0 == "\n" || $0 == "\r\n" || $0 == "\r" }.map(String.init)
    }

    /// What is expected of every shell; `offered` says what it has for the last of some words.
    private func check(_ lab: DaemonLab, _ offered: ([String]) throws -> [String]) throws {
        #expect(try offered(["sh"]).contains("show"))
        let domains = try offered(["show", ""])
        #expect(domains.contains("1") && domains.contains("web"), "\(domains)")
        for domain in ["1", "web"] {
            let devices = try offered(["detach", domain, ""])
            #expect(devices.contains("xvda"), "\(devices)")
        }
        let new = try offered(["attach", "1", ""])
        #expect(new.contains("xvdb") && !new.contains("xvda"), "\(new)")
        let settings = try offered(["set", "1", "xvda", "poll"])
        #expect(settings.contains("poll-us="), "\(settings)")
        let formats = try offered(["attach", "1", "xvdb", "r"])
        #expect(formats.contains("raw:"), "\(formats)")
        let images = try offered(["attach", "1", "xvdb", "raw:\(lab.root)/di"])
        #expect(images.contains { $0.hasSuffix("/disk.img") }, "\(images)")
        let files = try offered(["probe", "\(lab.root)/di"])
        #expect(files.contains { $0.hasSuffix("disk.img") }, "\(files)")
        let options = try offered(["attach", "--rea"])
        #expect(options.contains("--readonly"), "\(options)")
    }

    private func words(_ lab: DaemonLab, _ words: [String]) -> [String] {
        ["xbbctl", "--loopback", "\(lab.root)/xen", "--socket", lab.socket] + words
    }

    @Test("bash, with the file of the package and with ours alone", arguments: [true, false])
    func bash(_ isInstalled: Bool) throws {
        let lab = try lab()
        try check(lab) { more in
            let all = words(lab, more)
            return try run(
                lab, "bash",
                """
                shopt -s progcomp; compopt() { :; }
                \(isInstalled ? ". <(xbbctl --generate-completion-script bash)" : "")
                . \(Self.package)/packaging/xbbctl-completion.sh
                COMP_WORDS=(\(all.map { "'\($0)'" }.joined(separator: " "))); COMP_CWORD=\(all.count - 1)
                COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
                $(complete -p xbbctl | sed 's/.*-F \\([^ ]*\\).*/\\1/') xbbctl "${COMP_WORDS[COMP_CWORD]}" ''
                printf '%s\\n' "${COMPREPLY[@]}"
                """)
        }
    }

    @Test(.enabled(if: has("fish"), "fish is not installed")) func fish() throws {
        let lab = try lab()
        try check(lab) { more in
            let line = words(lab, more).joined(separator: " ")
            // Where the cursor is, fish knows in a terminal alone.
            let lines = try run(
                lab, "bash",
                """
                cd \(lab.root); rm -f found done
                cat >init.fish <<'END'
                xbbctl --generate-completion-script fish | source
                function offer
                    complete -C (commandline) >\(lab.root)/found 2>&1
                    touch \(lab.root)/done
                    exit
                end
                bind \\cx offer
                END
                { printf '%s\\x18' '\(line)'; for i in {1..600}; do [[ -e done ]] && break; sleep 0.05; done; } |
                    timeout 60 script -qc "fish --no-config -i -C 'source init.fish'" /dev/null >/dev/null 2>&1
                cat found
                """)
            // Behind a tab stands the description.
            return lines.map { String($0.split(separator: "\t").first ?? "") }
        }
    }

    /// zsh completes in its line editor alone: one that runs in a terminal of its own, with a list of one column.
    @Test(.enabled(if: has("zsh"), "zsh is not installed")) func zsh() throws {
        let lab = try lab()
        let folder = lab.root + "/zsh"
        mkdir(folder, 0o755)
        let script = try Program(
            [DaemonLab.products + "/xbbctl", "--generate-completion-script", "zsh"], capture: true)
        lab.put("zsh/_xbbctl", script.text())
        try check(lab) { more in
            let line = words(lab, more).joined(separator: " ")
            return try run(
                lab, "zsh",
                """
                zmodload zsh/zpty
                zpty shell zsh -f -i
                zpty -w shell 'fpath=(\(folder) $fpath); autoload -Uz compinit; compinit -u -D; PS1=; stty columns 400'
                zpty -w shell 'compadd() { builtin compadd "$@"; [[ ${@[(I)-[OAD]]} -gt 0 ]] && return; builtin compadd -O found "$@"; print -rl -- $found >>\(folder)/found; }'
                zpty -w shell 'zle -C offer list-choices _offer; _offer() { _main_complete; print -r done >>\(folder)/found; }; bindkey "^X" offer'
                rm -f \(folder)/found
                zpty -n -w shell $'\(line)\\x18'
                repeat 600 { grep -qx done \(folder)/found 2>/dev/null && break; sleep 0.05 }
                zpty -d shell
                cat \(folder)/found
                """)
        }
    }
}
