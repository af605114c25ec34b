# SPDX-License-Identifier: BSD-2-Clause
# A guest that is paused in the middle of I/O goes on where it was.
truncate -s 64M "$images/a.img"
guest_create pause "$(disk xvda "raw:$images/a.img")"
guest_fio_start pause xvda
for _ in 1 2 3; do
    xl pause pause
    # What is in flight ends; then nothing moves.
    last=-1
    await 60 "the disk's rest" eval 'before=$last; last=$(completed pause xvda); [[ $before == "$last" ]]'
    xl unpause pause
    await 120 "new I/O" completed_more pause xvda "$last"
done
guest_fio_end pause xvda
guest_shutdown pause
