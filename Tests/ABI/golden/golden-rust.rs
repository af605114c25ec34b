// SPDX-License-Identifier: BSD-2-Clause
//! A disk in memory that completes from a thread of its own, with the ABI written down in Rust, without any crate.
#![allow(non_camel_case_types)]
use std::ffi::{c_char, c_int, c_void};
use std::mem::{offset_of, size_of};
use std::sync::mpsc::{channel, Sender};
use std::sync::Mutex;
use std::thread::JoinHandle;

#[repr(C)]
struct iovec { base: *mut u8, len: usize }

#[repr(C)]
struct xbb_req {
    offset: u64, length: u64, iov: *const iovec, iovcnt: u32, flags: u16, op: u8, reserved0: u8, ctx: *mut c_void,
    hints: u32, reserved1: u32, reserved2: [u64; 2],
}

#[repr(C)]
struct xbb_error { code: i32, reserved: u32, message: [c_char; 248] }

#[repr(C)]
struct xbb_info {
    struct_size: u32, reserved0: u32, caps: u64, size: u64, logical_block: u32, physical_block: u32, optimal_io: u32,
    mem_align: u32, max_transfer: u64, max_iov: u32, max_queues: u32, queue_depth: u32, discard_granularity: u32,
    discard_offset: u32, reserved1: u32, max_discard: u64, max_write_zeroes: u64,
}

#[repr(C)]
struct xbb_option {
    name: *const c_char, help: *const c_char, def: *const c_char, choices: *const *const c_char, min: u64, max: u64,
    kind: u32, flags: u32, reserved: u64,
}

#[repr(C)]
struct xbb_value { num: u64, text: *const c_char }

#[repr(C)]
struct xbb_open {
    struct_size: u32, flags: u32, hdev: *mut c_void, fd: i32, option_count: u32, options: *const xbb_value,
    format: *const c_char, label: *const c_char,
}

#[repr(C)]
struct xbb_host {
    struct_size: u32, abi_major: u16, abi_minor: u16, features: u64,
    log: extern "C" fn(*mut c_void, u32, *const c_char),
    complete: extern "C" fn(*mut c_void, *mut xbb_req, i32),
}

type Callback = *const c_void;

#[repr(C)]
struct xbb_plugin {
    struct_size: u32, abi_major: u16, abi_minor: u16, need_features: u64, name: *const c_char, version: *const c_char,
    description: *const c_char, formats: *const *const c_char, options: *const xbb_option, option_count: u32, flags: u32,
    thread_model: u32, req_ctx_size: u32,
    load: extern "C" fn(*const xbb_host) -> c_int,
    probe: Callback, inspect: Callback,
    open: extern "C" fn(*const xbb_open, *mut *mut c_void, *mut xbb_error) -> c_int,
    start: extern "C" fn(*mut c_void, *mut xbb_error) -> c_int,
    close: extern "C" fn(*mut c_void),
    get_info: extern "C" fn(*mut c_void, *mut xbb_info) -> c_int,
    queue_open: extern "C" fn(*mut c_void, *mut c_void, *const c_void, *mut *mut c_void, *mut xbb_error) -> c_int,
    queue_close: extern "C" fn(*mut c_void),
    submit: extern "C" fn(*mut c_void, *const *mut xbb_req, u32) -> u32,
    rest: [Callback; 10],
}
unsafe impl Sync for xbb_plugin {}

const _: () = assert!(size_of::<xbb_req>() == 64 && offset_of!(xbb_req, ctx) == 32);
const _: () = assert!(size_of::<xbb_option>() == 64 && size_of::<xbb_value>() == 16 && size_of::<xbb_error>() == 256);
const _: () = assert!(offset_of!(xbb_plugin, load) == 72 && offset_of!(xbb_host, complete) == 24);
const _: () = assert!(offset_of!(xbb_info, max_write_zeroes) == 80);

struct Job { queue: *mut c_void, request: *mut xbb_req }
unsafe impl Send for Job {}

struct Disk { data: Mutex<Vec<u8>>, read_only: bool, thread: Mutex<Option<(Sender<Job>, JoinHandle<()>)>> }
struct Queue { handle: *mut c_void, jobs: Sender<Job> }

static HOST: Mutex<usize> = Mutex::new(0);

fn host() -> &'static xbb_host { unsafe { &*(*HOST.lock().unwrap() as *const xbb_host) } }

extern "C" fn load(table: *const xbb_host) -> c_int {
    *HOST.lock().unwrap() = table as usize;
    0
}

extern "C" fn open(open: *const xbb_open, out: *mut *mut c_void, _: *mut xbb_error) -> c_int {
    let open = unsafe { &*open };
    let size = unsafe { (*open.options).num } as usize;
    let disk = Disk { data: Mutex::new(vec![0; size]), read_only: open.flags & 1 != 0, thread: Mutex::new(None) };
    unsafe { *out = Box::into_raw(Box::new(disk)) as *mut c_void };
    0
}

fn perform(disk: &Disk, request: &xbb_req) -> i32 {
    if request.op != 1 && request.op != 2 { return -95; }
    let mut data = disk.data.lock().unwrap();
    let mut place = request.offset as usize;
    for part in 0..request.iovcnt as usize {
        let vector = unsafe { &*request.iov.add(part) };
        let memory = unsafe { std::slice::from_raw_parts_mut(vector.base, vector.len) };
        let range = &mut data[place..place + vector.len];
        if request.op == 1 { memory.copy_from_slice(range) } else { range.copy_from_slice(memory) }
        place += vector.len;
    }
    0
}

extern "C" fn start(device: *mut c_void, _: *mut xbb_error) -> c_int {
    let disk: &'static Disk = unsafe { &*(device as *const Disk) };
    let (jobs, work) = channel::<Job>();
    let thread = std::thread::spawn(move || {
        for job in work { (host().complete)(job.queue, job.request, perform(disk, unsafe { &*job.request })) }
    });
    *disk.thread.lock().unwrap() = Some((jobs, thread));
    0
}

extern "C" fn close(device: *mut c_void) {
    let disk = unsafe { Box::from_raw(device as *mut Disk) };
    if let Some((jobs, thread)) = disk.thread.lock().unwrap().take() {
        drop(jobs);
        let _ = thread.join();
    };
}

extern "C" fn get_info(device: *mut c_void, info: *mut xbb_info) -> c_int {
    let (disk, info) = unsafe { (&*(device as *const Disk), &mut *info) };
    info.size = disk.data.lock().unwrap().len() as u64;
    info.caps = if disk.read_only { 0 } else { 1 };
    info.max_queues = 4;
    0
}

extern "C" fn queue_open(
    device: *mut c_void, handle: *mut c_void, _: *const c_void, out: *mut *mut c_void, _: *mut xbb_error,
) -> c_int {
    let disk = unsafe { &*(device as *const Disk) };
    let Some(jobs) = disk.thread.lock().unwrap().as_ref().map(|thread| thread.0.clone()) else { return -22 };
    unsafe { *out = Box::into_raw(Box::new(Queue { handle, jobs })) as *mut c_void };
    0
}

extern "C" fn queue_close(queue: *mut c_void) { drop(unsafe { Box::from_raw(queue as *mut Queue) }) }

extern "C" fn submit(queue: *mut c_void, requests: *const *mut xbb_req, count: u32) -> u32 {
    let queue = unsafe { &*(queue as *const Queue) };
    for index in 0..count as usize {
        let request = unsafe { *requests.add(index) };
        if queue.jobs.send(Job { queue: queue.handle, request }).is_err() { return index as u32; }
    }
    count
}

struct Texts([*const c_char; 2]);
unsafe impl Sync for Texts {}
unsafe impl Sync for xbb_option {}
static FORMATS: Texts = Texts([c"golden-rust".as_ptr(), std::ptr::null()]);
static SIZE: xbb_option = xbb_option {
    name: c"size".as_ptr(), help: c"bytes".as_ptr(), def: c"64M".as_ptr(), choices: std::ptr::null(), min: 512,
    max: 1 << 30, kind: 3, flags: 0, reserved: 0,
};
static PLUGIN: xbb_plugin = xbb_plugin {
    struct_size: size_of::<xbb_plugin>() as u32, abi_major: 1, abi_minor: 0, need_features: 0,
    name: c"golden-rust".as_ptr(), version: c"1".as_ptr(),
    description: c"Kept as it was built for ABI 1.0, from Rust".as_ptr(), formats: &FORMATS.0 as *const _,
    options: &SIZE, option_count: 1, flags: 1 << 3, thread_model: 3000, req_ctx_size: 0, load,
    probe: std::ptr::null(), inspect: std::ptr::null(), open, start, close, get_info, queue_open, queue_close, submit,
    rest: [std::ptr::null(); 10],
};
const _: () = assert!(size_of::<xbb_plugin>() == 232);

#[no_mangle]
extern "C" fn xbb_plugin_v1() -> *const xbb_plugin { &PLUGIN }
