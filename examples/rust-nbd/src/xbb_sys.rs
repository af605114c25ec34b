// SPDX-License-Identifier: BSD-2-Clause
//! The plugin ABI 1.3 (xbb_plugin.h) as far as this plugin needs it. Its layout is frozen; the assertions at the end are
//! the header's own. A function that is not used here stands as a plain pointer, and is null.
#![allow(non_camel_case_types)]
use std::ffi::c_void;
use std::mem::size_of;
use std::os::raw::{c_char, c_int};

pub const XBB_ABI_MAJOR: u16 = 1;
pub const XBB_ABI_MINOR: u16 = 3;

pub const XBB_OP_READ: u8 = 1;
pub const XBB_OP_WRITE: u8 = 2;
pub const XBB_OP_FLUSH: u8 = 3;
pub const XBB_OP_DISCARD: u8 = 4;
pub const XBB_OP_WRITE_ZEROES: u8 = 5;

pub const XBB_REQ_FUA: u16 = 1 << 0;
pub const XBB_REQ_MAY_UNMAP: u16 = 1 << 2;
pub const XBB_REQ_NO_FALLBACK: u16 = 1 << 3;

pub const XBB_CAP_WRITE: u64 = 1 << 0;
pub const XBB_CAP_FLUSH: u64 = 1 << 1;
pub const XBB_CAP_FUA: u64 = 1 << 2;
pub const XBB_CAP_DISCARD: u64 = 1 << 3;
pub const XBB_CAP_WRITE_ZEROES: u64 = 1 << 6;
pub const XBB_CAP_ROTATIONAL: u64 = 1 << 9;

pub const XBB_OPT_STRING: u32 = 4;
pub const XBB_OPEN_RDONLY: u32 = 1 << 0;
pub const XBB_LOG_ERROR: u32 = 1;
pub const XBB_NOTIFY_LOST: u32 = 2;
pub const XBB_NOTIFY_REOPEN: u32 = 5;
pub const XBB_THREADS_QUEUE: u32 = 3000;
pub const XBB_PLUGIN_NETWORK: u32 = 1 << 1;
pub const XBB_PLUGIN_NO_FD: u32 = 1 << 3;

#[repr(C)]
pub struct iovec {
    pub base: *mut u8,
    pub length: usize,
}

#[repr(C)]
pub struct xbb_req {
    pub offset: u64,
    pub length: u64,
    pub iov: *const iovec,
    pub iovcnt: u32,
    pub flags: u16,
    pub op: u8,
    pub reserved0: u8,
    pub ctx: *mut c_void,
    pub hints: u32,
    pub reserved1: u32,
    pub reserved2: [u64; 2],
}

#[repr(C)]
pub struct xbb_error {
    pub code: i32,
    pub reserved: u32,
    pub message: [c_char; 248],
}

#[repr(C)]
pub struct xbb_info {
    pub struct_size: u32,
    pub reserved0: u32,
    pub caps: u64,
    pub size: u64,
    pub logical_block: u32,
    pub physical_block: u32,
    pub optimal_io: u32,
    pub mem_align: u32,
    pub max_transfer: u64,
    pub max_iov: u32,
    pub max_queues: u32,
    pub queue_depth: u32,
    pub discard_granularity: u32,
    pub discard_offset: u32,
    pub reserved1: u32,
    pub max_discard: u64,
    pub max_write_zeroes: u64,
}

#[repr(C)]
pub struct xbb_option {
    pub name: *const c_char,
    pub help: *const c_char,
    pub def: *const c_char,
    pub choices: *const *const c_char,
    pub min: u64,
    pub max: u64,
    pub kind: u32,
    pub flags: u32,
    pub reserved: u64,
}
unsafe impl Sync for xbb_option {}

#[repr(C)]
pub struct xbb_value {
    pub num: u64,
    pub text: *const c_char,
}

#[repr(C)]
pub struct xbb_open {
    pub struct_size: u32,
    pub flags: u32,
    pub hdev: *mut c_void,
    pub fd: i32,
    pub option_count: u32,
    pub options: *const xbb_value,
    pub format: *const c_char,
    pub label: *const c_char,
}

/// A function that this plugin neither calls nor has.
pub type Unused = *const c_void;

#[repr(C)]
pub struct xbb_host {
    pub struct_size: u32,
    pub abi_major: u16,
    pub abi_minor: u16,
    pub features: u64,
    pub log: extern "C" fn(*mut c_void, u32, *const c_char),
    pub complete: extern "C" fn(*mut c_void, *mut xbb_req, i32),
    pub watches_timers_post: [Unused; 7],
    pub notify: extern "C" fn(*mut c_void, u32),
    pub extension_and_children: [Unused; 6],
    /// Since 1.3, as is `kept`: an older host's table ends before them.
    pub keep: extern "C" fn(*mut c_void, u32, c_int) -> c_int,
    pub kept: extern "C" fn(*mut c_void, u32) -> c_int,
}

#[repr(C)]
pub struct xbb_plugin {
    pub struct_size: u32,
    pub abi_major: u16,
    pub abi_minor: u16,
    pub need_features: u64,
    pub name: *const c_char,
    pub version: *const c_char,
    pub description: *const c_char,
    pub formats: *const *const c_char,
    pub options: *const xbb_option,
    pub option_count: u32,
    pub flags: u32,
    pub thread_model: u32,
    pub req_ctx_size: u32,
    pub load: extern "C" fn(*const xbb_host) -> c_int,
    pub probe: Unused,
    pub inspect: Unused,
    pub open: extern "C" fn(*const xbb_open, *mut *mut c_void, *mut xbb_error) -> c_int,
    pub start: extern "C" fn(*mut c_void, *mut xbb_error) -> c_int,
    pub close: extern "C" fn(*mut c_void),
    pub get_info: extern "C" fn(*mut c_void, *mut xbb_info) -> c_int,
    pub queue_open: extern "C" fn(*mut c_void, *mut c_void, *const c_void, *mut *mut c_void, *mut xbb_error) -> c_int,
    pub queue_close: extern "C" fn(*mut c_void),
    pub submit: extern "C" fn(*mut c_void, *const *mut xbb_req, u32) -> u32,
    pub rest: [Unused; 11],
}
unsafe impl Sync for xbb_plugin {}

/// A NULL-terminated list of texts with one text.
#[repr(C)]
pub struct Texts(pub [*const c_char; 2]);
unsafe impl Sync for Texts {}

const _: () = assert!(size_of::<xbb_req>() == 64);
const _: () = assert!(size_of::<xbb_error>() == 256);
const _: () = assert!(size_of::<xbb_info>() == 88);
const _: () = assert!(size_of::<xbb_option>() == 64);
const _: () = assert!(size_of::<xbb_value>() == 16);
const _: () = assert!(size_of::<xbb_open>() == 48);
const _: () = assert!(size_of::<xbb_host>() == 16 + 18 * size_of::<Unused>());
const _: () = assert!(size_of::<xbb_plugin>() == 240);
