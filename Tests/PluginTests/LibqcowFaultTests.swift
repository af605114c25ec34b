// SPDX-License-Identifier: BSD-2-Clause
// What libqcow alone gets wrong, shown with its own tool-kit: the reasons for docs/decisions/0009-qcow-and-libqcow.md.
import Glibc
import PluginCheck
import Testing

@Suite struct LibqcowFaultTests {
    let folder = TemporaryFolder()

    /// A read of `length` bytes at `offset` with libqcow, in hexadecimal; the image may have a parent.
    private func read(_ image: String, parent: String = "", at offset: Int, _ length: Int) throws -> String {
        let source = """
            #include <libqcow.h>
            #include <stdio.h>
            #include <stdlib.h>
            static libqcow_file_t *open_image(const char *path) {
                libqcow_file_t *file = NULL;
                libqcow_file_initialize(&file, NULL);
                if (libqcow_file_open(file, path, libqcow_get_access_flags_read(), NULL) != 1) exit(1);
                return file;
            }
            int main(int argc, char **argv) {
                unsigned char buffer[1 << 20];
                libqcow_file_t *file = open_image(argv[1]);
                if (argc > 4 && libqcow_file_set_parent_file(file, open_image(argv[4]), NULL) != 1) return 2;
                ssize_t count = libqcow_file_read_buffer_at_offset(file, buffer, atoi(argv[3]), atoi(argv[2]), NULL);
                for (ssize_t i = 0; i < count; i++) printf("%02x", buffer[i]);
                return count < 0;
            }
            """
        let program = "\(folder.path)/program"
        let built = shell("cat > \(program).c <<'END'\n\(source)\nEND\ngcc -o \(program) \(program).c -lqcow")
        guard built.status == 0 else { throw Failure(built.output) }
        let result = shell("\(program) \(image) \(offset) \(length) \(parent)")
        guard result.status == 0 else { throw Failure("libqcow: \(result.status)") }
        return result.output
    }

    /// With the cluster given back it is the image's header, with the cluster kept what was overwritten with zeroes.
    @Test(arguments: [("-zu", "514649"), ("-z", "070707")])
    func aZeroClusterReadsAsSomethingElse(how: String, bytes: String) throws {
        let image = "\(folder.path)/image"
        let made = shell(
            "qemu-img create -q -f qcow2 \(image) 1M && "
                + "qemu-io -f qcow2 -c 'write -P 7 0 64k' -c 'write \(how) 0 64k' \(image)")
        #expect(made.status == 0, "\(made.output)")
        #expect(try read(image, at: 0, 3) == bytes)
    }

    @Test func aReadThatBeginsInAHoleTakesTheParentsDataForTheRest() throws {
        let (base, top) = ("\(folder.path)/base", "\(folder.path)/top")
        let made = shell(
            "qemu-img create -q -f qcow2 \(base) 1M && qemu-io -f qcow2 -c 'write -P 1 0 1M' \(base) && "
                + "qemu-img create -q -f qcow2 -b \(base) -F qcow2 \(top) && qemu-io -f qcow2 -c 'write -P 2 64k 64k' \(top)"
        )
        #expect(made.status == 0, "\(made.output)")
        // The image has 2 from 64 KiB on.
        #expect(try read(top, parent: base, at: 65534, 4) == "01010101")
        #expect(try read(top, parent: base, at: 65536, 2) == "0202")
    }
}
