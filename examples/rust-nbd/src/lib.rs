// SPDX-License-Identifier: BSD-2-Clause
//! A disk behind an NBD server on a Unix socket. submit() hands requests to a thread that sends them; another thread
//! receives the answers and completes them. The queue's thread waits for neither.
//!
//! A connection that breaks is not made anew here: XBB_NOTIFY_REOPEN ends the process, and the next one opens the disk again,
//! with the requests that had no answer. What the server still does for the old connection must not come after those. So the
//! connection is kept for the next process, also one that follows on a kill; it says that nothing more comes, and reads to
//! the end, before it connects. nbdkit ends what it took before it closes; use a server that does.
mod nbd;
mod xbb_sys;

use std::ffi::{c_void, CStr, CString};
use std::io::{BufReader, Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::io::{AsRawFd, BorrowedFd};
use std::os::raw::c_int;
use std::os::unix::net::UnixStream;
use std::ptr::{copy_nonoverlapping, null, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use xbb_sys::*;

const EINVAL: i32 = 22;
const EIO: i32 = 5;
const EOPNOTSUPP: i32 = 95;
const EOPNOTSUPP_OF_HOST: i32 = -EOPNOTSUPP;
const EROFS: i32 = 30;
/// Bytes of a read or write, and after how many bytes requests are sent together.
const LARGEST: u32 = 1 << 20;

static HOST: AtomicPtr<xbb_host> = AtomicPtr::new(null_mut());

fn host() -> &'static xbb_host {
    // load() comes before every other call, and the table is valid for ever.
    unsafe { &*HOST.load(Ordering::Relaxed) }
}

/// The host knows XBB_NOTIFY_REOPEN, keep() and kept().
fn is_followed() -> bool {
    host().struct_size as usize >= std::mem::size_of::<xbb_host>()
}

/// A request from its acceptance on, and the queue that it came by.
struct Job {
    queue: *mut c_void,
    request: *mut xbb_req,
}
// The plugin owns an accepted request, on whichever thread.
unsafe impl Send for Job {}

impl Job {
    fn request(&self) -> &xbb_req {
        unsafe { &*self.request }
    }

    /// The buffers; never as slices that are read from, for a guest may change them meanwhile.
    fn parts(&self) -> &[iovec] {
        match self.request().iovcnt {
            0 => &[],
            count => unsafe { std::slice::from_raw_parts(self.request().iov, count as usize) },
        }
    }

    /// Gives the request back to the host. It takes the job with it, so that this happens once.
    fn complete(self, status: i32) {
        (host().complete)(self.queue, self.request, status)
    }
}

/// Requests that the server has; the number of a place is the cookie.
#[derive(Default)]
struct Pending {
    places: Vec<Option<Job>>,
    free: Vec<usize>,
    is_over: bool,
}

/// The connection, as both threads and the disk know it.
struct Link {
    disk: *mut c_void,
    stream: UnixStream,
    flags: u16,
    pending: Mutex<Pending>,
}
// `disk` is the host's name of the disk, which log() and notify() take on any thread.
unsafe impl Send for Link {}
unsafe impl Sync for Link {}

impl Link {
    /// The connection is of no use any more. What is pending is the next process's; a host that starts none, from before ABI 1.3,
    /// gets an error for it, and for all that comes later. The first time somebody is told.
    fn end(&self, reason: &str) {
        let mut pending = self.pending.lock().unwrap();
        if is_followed() {
            if !std::mem::replace(&mut pending.is_over, true) {
                self.tell(reason, XBB_NOTIFY_REOPEN);
            }
            return;
        }
        let jobs: Vec<Job> = pending.places.iter_mut().filter_map(Option::take).collect();
        let is_news = !pending.is_over;
        pending.is_over = true;
        drop(pending);
        let _ = self.stream.shutdown(Shutdown::Both);
        if is_news {
            self.tell(reason, XBB_NOTIFY_LOST);
        }
        for job in jobs {
            job.complete(-EIO);
        }
    }

    fn tell(&self, reason: &str, what: u32) {
        let line = CString::new(format!("the NBD server is gone: {reason}")).unwrap_or_default();
        (host().log)(self.disk, XBB_LOG_ERROR, line.as_ptr());
        (host().notify)(self.disk, what);
    }

    /// Command and flags for a request, or a negative errno for one that cannot be.
    fn command(&self, request: &xbb_req) -> std::result::Result<(u16, u16), i32> {
        let (command, known) = match request.op {
            XBB_OP_READ => (nbd::CMD_READ, 0),
            XBB_OP_WRITE => (nbd::CMD_WRITE, XBB_REQ_FUA),
            XBB_OP_FLUSH => (nbd::CMD_FLUSH, 0),
            XBB_OP_DISCARD => (nbd::CMD_TRIM, XBB_REQ_FUA),
            XBB_OP_WRITE_ZEROES => {
                (nbd::CMD_WRITE_ZEROES, XBB_REQ_FUA | XBB_REQ_MAY_UNMAP | XBB_REQ_NO_FALLBACK)
            }
            _ => return Err(-EOPNOTSUPP),
        };
        if request.flags & !known != 0 {
            return Err(-EINVAL);
        }
        let mut flags = 0;
        if request.flags & XBB_REQ_FUA != 0 {
            flags |= nbd::CMD_FLAG_FUA;
        }
        if request.op == XBB_OP_WRITE_ZEROES {
            if request.flags & XBB_REQ_MAY_UNMAP == 0 {
                flags |= nbd::CMD_FLAG_NO_HOLE;
            }
            if request.flags & XBB_REQ_NO_FALLBACK != 0 {
                if self.flags & nbd::FLAG_SEND_FAST_ZERO == 0 {
                    return Err(-EOPNOTSUPP);
                }
                flags |= nbd::CMD_FLAG_FAST_ZERO;
            }
        }
        Ok((command, flags))
    }

    /// Appends a request to what is sent next. Its data are copied: nothing looks at its buffers after this.
    fn prepare(&self, job: Job, buffer: &mut Vec<u8>) {
        let (command, flags) = match self.command(job.request()) {
            Ok(pair) => pair,
            Err(status) => return job.complete(status),
        };
        let (offset, length) = (job.request().offset, job.request().length as u32);
        let start = buffer.len() + 28;
        let mut pending = self.pending.lock().unwrap();
        if pending.is_over {
            drop(pending);
            // Without an answer it is the next process's.
            return if is_followed() { () } else { job.complete(-EIO) };
        }
        let place = pending.free.pop().unwrap_or(pending.places.len());
        nbd::put_request(buffer, command, flags, place as u64, offset, length);
        if command == nbd::CMD_WRITE {
            buffer.resize(start + length as usize, 0);
            let mut at = start;
            for part in job.parts() {
                unsafe { copy_nonoverlapping(part.base, buffer[at..at + part.length].as_mut_ptr(), part.length) };
                at += part.length;
            }
        }
        if place == pending.places.len() {
            pending.places.push(Some(job));
        } else {
            pending.places[place] = Some(job);
        }
    }

    /// The job behind a cookie, or None for one that the server made up.
    fn take(&self, cookie: u64) -> Option<Job> {
        let mut pending = self.pending.lock().unwrap();
        let job = pending.places.get_mut(cookie as usize)?.take()?;
        pending.free.push(cookie as usize);
        Some(job)
    }

    fn send(&self, jobs: Receiver<Job>) {
        let mut buffer = Vec::new();
        while let Ok(first) = jobs.recv() {
            buffer.clear();
            self.prepare(first, &mut buffer);
            while buffer.len() < LARGEST as usize {
                match jobs.try_recv() {
                    Ok(job) => self.prepare(job, &mut buffer),
                    Err(_) => break,
                }
            }
            if let Err(error) = (&self.stream).write_all(&buffer) {
                self.end(&error.to_string());
            }
        }
    }

    fn receive(&self) {
        let mut stream = BufReader::with_capacity(1 << 16, &self.stream);
        loop {
            match nbd::get_reply(&mut stream) {
                Ok((cookie, status)) => match self.take(cookie) {
                    Some(job) if status == 0 && job.request().op == XBB_OP_READ => {
                        match read_parts(&mut stream, &job) {
                            Ok(()) => job.complete(0),
                            Err(error) => {
                                if !is_followed() {
                                    job.complete(-EIO);
                                }
                                return self.end(&error.to_string());
                            }
                        }
                    }
                    Some(job) => job.complete(status),
                    None => return self.end("it answered a request that nobody made"),
                },
                Err(error) => return self.end(&error.to_string()),
            }
        }
    }
}

fn read_parts(stream: &mut impl Read, job: &Job) -> Result<()> {
    for part in job.parts() {
        stream.read_exact(unsafe { std::slice::from_raw_parts_mut(part.base, part.length) })?;
    }
    Ok(())
}

extern "C" {
    fn pthread_sigmask(how: c_int, set: *const [u64; 16], old: *mut [u64; 16]) -> c_int;
}

/// A thread that gets no signal: those are for the host's threads. (It inherits the mask; a broken pipe becomes an error.)
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let (all, mut before) = ([u64::MAX; 16], [0; 16]);
    unsafe { pthread_sigmask(2, &all, &mut before) };
    let thread = Builder::new().name(name.into()).spawn(body);
    unsafe { pthread_sigmask(2, &before, null_mut()) };
    thread
}

struct Disk {
    export: nbd::Export,
    is_read_only: bool,
    link: Arc<Link>,
    running: Mutex<Option<Running>>,
}

struct Running {
    jobs: Sender<Job>,
    threads: Vec<JoinHandle<()>>,
}

struct Queue {
    handle: *mut c_void,
    jobs: Sender<Job>,
}

/// Fills in the host's error and returns its code.
fn refuse(out: *mut xbb_error, code: i32, message: &str) -> c_int {
    let out = unsafe { &mut *out };
    out.code = -code;
    // The rest stays 0, the end of the text too.
    for (place, byte) in out.message.iter_mut().zip(message.bytes().take(247)) {
        *place = byte as _;
    }
    -code
}

/// Waits until the server has ended all that the process before had asked for, if there was one.
fn settle(disk: *mut c_void) -> Result<()> {
    let descriptor = if is_followed() { (host().kept)(disk, 0) } else { -1 };
    if descriptor < 0 {
        return Ok(());
    }
    // The descriptor is the host's until open() returns.
    let mut before = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned().map(UnixStream::from)?;
    let _ = before.shutdown(Shutdown::Write);
    let mut bytes = [0; 1 << 16];
    while matches!(before.read(&mut bytes), Ok(count) if count > 0) {}
    Ok(())
}

fn connect(disk: *mut c_void, path: &str, name: &str) -> Result<(UnixStream, nbd::Export)> {
    settle(disk)?;
    let mut stream = UnixStream::connect(path)?;
    if is_followed() {
        match (host().keep)(disk, 0, stream.as_raw_fd()) {
            // Nobody would follow: this is a checker.
            0 | EOPNOTSUPP_OF_HOST => {}
            code => return Err(std::io::Error::from_raw_os_error(-code)),
        }
    }
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let export = nbd::negotiate(&mut stream, name)?;
    stream.set_read_timeout(None)?;
    Ok((stream, export))
}

extern "C" fn load(table: *const xbb_host) -> c_int {
    HOST.store(table as *mut xbb_host, Ordering::Relaxed);
    0
}

extern "C" fn open(open: *const xbb_open, out: *mut *mut c_void, error: *mut xbb_error) -> c_int {
    let open = unsafe { &*open };
    let text = |index| unsafe { CStr::from_ptr((*open.options.add(index)).text) }.to_string_lossy().into_owned();
    let (path, name) = (text(0), text(1));
    let (stream, export) = match connect(open.hdev, &path, &name) {
        Ok(pair) => pair,
        Err(why) => return refuse(error, why.raw_os_error().unwrap_or(EIO), &format!("{path}: {why}")),
    };
    let is_read_only = open.flags & XBB_OPEN_RDONLY != 0;
    if !is_read_only && export.flags & nbd::FLAG_READ_ONLY != 0 {
        return refuse(error, EROFS, "the NBD server lets nobody write: attach the disk read-only");
    }
    if export.block > 4096 || export.size < 4096 {
        return refuse(error, EINVAL, "the NBD server's disk is too small, or its blocks are larger than 4096 bytes");
    }
    let link = Link { disk: open.hdev, stream, flags: export.flags, pending: Mutex::default() };
    let disk = Disk { export, is_read_only, link: Arc::new(link), running: Mutex::new(None) };
    unsafe { *out = Box::into_raw(Box::new(disk)) as *mut c_void };
    0
}

fn start_threads(link: &Arc<Link>) -> Result<Running> {
    let (jobs, work) = channel();
    let (sender, receiver) = (link.clone(), link.clone());
    let threads = vec![spawn("nbd-send", move || sender.send(work))?, spawn("nbd-receive", move || receiver.receive())?];
    Ok(Running { jobs, threads })
}

extern "C" fn start(device: *mut c_void, error: *mut xbb_error) -> c_int {
    let disk = unsafe { &*(device as *const Disk) };
    match start_threads(&disk.link) {
        Ok(running) => *disk.running.lock().unwrap() = Some(running),
        Err(why) => return refuse(error, EIO, &format!("no threads: {why}")),
    }
    0
}

extern "C" fn close(device: *mut c_void) {
    let disk = unsafe { Box::from_raw(device as *mut Disk) };
    // Nothing is in flight. The server is told, so that it sees no broken connection.
    disk.link.pending.lock().unwrap().is_over = true;
    let mut farewell = Vec::new();
    nbd::put_request(&mut farewell, nbd::CMD_DISC, 0, 0, 0, 0);
    let _ = (&disk.link.stream).write_all(&farewell);
    let _ = disk.link.stream.shutdown(Shutdown::Both);
    if let Some(running) = disk.running.lock().unwrap().take() {
        drop(running.jobs);
        for thread in running.threads {
            let _ = thread.join();
        }
    };
}

extern "C" fn get_info(device: *mut c_void, info: *mut xbb_info) -> c_int {
    let (disk, info) = unsafe { (&*(device as *const Disk), &mut *info) };
    let has = |flag, capability| if disk.export.flags & flag != 0 { capability } else { 0 };
    info.logical_block = disk.export.block.next_power_of_two().max(512);
    info.size = disk.export.size / u64::from(info.logical_block) * u64::from(info.logical_block);
    info.caps = has(nbd::FLAG_ROTATIONAL, XBB_CAP_ROTATIONAL);
    if !disk.is_read_only {
        info.caps |= XBB_CAP_WRITE
            | has(nbd::FLAG_SEND_FLUSH, XBB_CAP_FLUSH)
            | has(nbd::FLAG_SEND_FUA, XBB_CAP_FUA)
            | has(nbd::FLAG_SEND_TRIM, XBB_CAP_DISCARD)
            | has(nbd::FLAG_SEND_WRITE_ZEROES, XBB_CAP_WRITE_ZEROES);
    }
    info.max_transfer = u64::from(LARGEST.min(disk.export.largest.max(4096)));
    info.max_discard = 1 << 30;
    info.max_write_zeroes = 1 << 30;
    info.max_queues = 4;
    0
}

extern "C" fn queue_open(
    device: *mut c_void,
    handle: *mut c_void,
    _parameters: *const c_void,
    out: *mut *mut c_void,
    error: *mut xbb_error,
) -> c_int {
    let disk = unsafe { &*(device as *const Disk) };
    match disk.running.lock().unwrap().as_ref() {
        Some(running) => {
            let queue = Queue { handle, jobs: running.jobs.clone() };
            unsafe { *out = Box::into_raw(Box::new(queue)) as *mut c_void };
            0
        }
        None => refuse(error, EINVAL, "queue_open() before start()"),
    }
}

extern "C" fn queue_close(queue: *mut c_void) {
    drop(unsafe { Box::from_raw(queue as *mut Queue) })
}

extern "C" fn submit(queue: *mut c_void, requests: *const *mut xbb_req, count: u32) -> u32 {
    let queue = unsafe { &*(queue as *const Queue) };
    for index in 0..count {
        let request = unsafe { *requests.add(index as usize) };
        if queue.jobs.send(Job { queue: queue.handle, request }).is_err() {
            return index;
        }
    }
    count
}

static FORMATS: Texts = Texts(["rust-nbd\0".as_ptr() as _, null()]);
static OPTIONS: [xbb_option; 2] = [
    xbb_option {
        name: "socket\0".as_ptr() as _,
        help: "Unix socket of the NBD server\0".as_ptr() as _,
        def: null(),
        choices: null(),
        min: 0,
        max: 0,
        kind: XBB_OPT_STRING,
        flags: 0,
        reserved: 0,
    },
    xbb_option {
        name: "export\0".as_ptr() as _,
        help: "name of the export\0".as_ptr() as _,
        def: "\0".as_ptr() as _,
        choices: null(),
        min: 0,
        max: 0,
        kind: XBB_OPT_STRING,
        flags: 0,
        reserved: 0,
    },
];
static PLUGIN: xbb_plugin = xbb_plugin {
    struct_size: std::mem::size_of::<xbb_plugin>() as u32,
    abi_major: XBB_ABI_MAJOR,
    abi_minor: XBB_ABI_MINOR,
    need_features: 0,
    name: "rust-nbd\0".as_ptr() as _,
    version: "1\0".as_ptr() as _,
    description: "Disk of an NBD server on a Unix socket\0".as_ptr() as _,
    formats: FORMATS.0.as_ptr(),
    options: OPTIONS.as_ptr(),
    option_count: 2,
    flags: XBB_PLUGIN_NO_FD | XBB_PLUGIN_NETWORK,
    thread_model: XBB_THREADS_QUEUE,
    req_ctx_size: 0,
    load,
    probe: null(),
    inspect: null(),
    open,
    start,
    close,
    get_info,
    queue_open,
    queue_close,
    submit,
    rest: [null(); 11],
};

/// The one exported symbol.
#[no_mangle]
pub extern "C" fn xbb_plugin_v1() -> *const xbb_plugin {
    &PLUGIN
}
