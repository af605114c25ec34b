# SPDX-License-Identifier: BSD-2-Clause
# xl save in the middle of I/O and xl restore: fio in the guest ends without an error, and all is verified.
# limit: 1200
truncate -s 64M "$images/a.img"
guest_create saved "$(disk xvda "raw:$images/a.img")"
guest_fio_start saved xvda
xl save saved "$images/saved"
await 60 "the worker's end" eval '[[ $(workers) -eq 0 && $(vbd_nodes) -eq 0 ]]'
note "saved"
xl restore "$images/saved"
note "restored"
await 120 "I/O afterwards" completed_more saved xvda 20
guest_fio_end saved xvda
guest_shutdown saved
