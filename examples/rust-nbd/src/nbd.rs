// SPDX-License-Identifier: BSD-2-Clause
//! What of the NBD protocol a client needs: the handshake of the "fixed newstyle" with NBD_OPT_GO, requests, and simple
//! replies. The names are those of the protocol's document (doc/proto.md of the NBD project). All numbers are big-endian.
use std::io::{Error, ErrorKind, Read, Result, Write};

pub const FLAG_READ_ONLY: u16 = 1 << 1;
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
pub const FLAG_SEND_FUA: u16 = 1 << 3;
pub const FLAG_ROTATIONAL: u16 = 1 << 4;
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub const FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_WRITE_ZEROES: u16 = 6;

pub const CMD_FLAG_FUA: u16 = 1 << 0;
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u16 = 3;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// What the server said about the disk.
#[derive(Default)]
pub struct Export {
    pub size: u64,
    /// `FLAG_*`
    pub flags: u16,
    /// The smallest request in bytes, and the largest.
    pub block: u32,
    pub largest: u32,
}

/// A failure in words for the operator.
fn failure(text: String) -> Error {
    Error::new(ErrorKind::Other, text)
}

fn get<const N: usize>(stream: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The big-endian number at `place`, or an error where the server sent too little.
fn number(bytes: &[u8], place: usize, length: usize) -> Result<u64> {
    let part = bytes.get(place..place + length).ok_or_else(|| failure("the NBD server's answer is too short".into()))?;
    Ok(part.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Asks the server for `name`; afterwards the connection takes requests.
pub fn negotiate(stream: &mut (impl Read + Write), name: &str) -> Result<Export> {
    if u64::from_be_bytes(get(stream)?) != MAGIC || u64::from_be_bytes(get(stream)?) != OPTION_MAGIC {
        return Err(failure("what answers there is no NBD server".into()));
    }
    let flags = u16::from_be_bytes(get(stream)?) & FIXED_NEWSTYLE_NO_ZEROES;
    if flags & 1 == 0 {
        return Err(failure("the NBD server is too old: it has no fixed newstyle negotiation".into()));
    }
    let mut ask = Vec::new();
    ask.extend_from_slice(&u32::from(flags).to_be_bytes());
    ask.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    ask.extend_from_slice(&OPT_GO.to_be_bytes());
    ask.extend_from_slice(&(name.len() as u32 + 8).to_be_bytes());
    ask.extend_from_slice(&(name.len() as u32).to_be_bytes());
    ask.extend_from_slice(name.as_bytes());
    ask.extend_from_slice(&1u16.to_be_bytes());
    ask.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    stream.write_all(&ask)?;

    let mut export = Export { block: 1, largest: 32 << 20, ..Export::default() };
    loop {
        let head: [u8; 20] = get(stream)?;
        let (kind, length) = (number(&head, 12, 4)? as u32, number(&head, 16, 4)?);
        if number(&head, 0, 8)? != OPTION_REPLY_MAGIC || number(&head, 8, 4)? as u32 != OPT_GO || length > 65536 {
            return Err(failure("the NBD server does not keep to its protocol".into()));
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        match kind {
            REP_ACK => return Ok(export),
            REP_INFO => match number(&data, 0, 2)? as u16 {
                INFO_EXPORT => {
                    export.size = number(&data, 2, 8)?;
                    export.flags = number(&data, 10, 2)? as u16;
                }
                INFO_BLOCK_SIZE => {
                    export.block = number(&data, 2, 4)? as u32;
                    export.largest = number(&data, 10, 4)? as u32;
                }
                _ => {}
            },
            kind if kind & REP_ERROR != 0 => {
                return Err(failure(format!("the NBD server refuses: {}", String::from_utf8_lossy(&data))));
            }
            _ => {}
        }
    }
}

/// Appends the header of a request.
pub fn put_request(buffer: &mut Vec<u8>, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
    buffer.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
    buffer.extend_from_slice(&flags.to_be_bytes());
    buffer.extend_from_slice(&command.to_be_bytes());
    buffer.extend_from_slice(&cookie.to_be_bytes());
    buffer.extend_from_slice(&offset.to_be_bytes());
    buffer.extend_from_slice(&length.to_be_bytes());
}

/// The cookie of the next reply and its status: 0 or a negative errno. Data follow where a read succeeded.
pub fn get_reply(stream: &mut impl Read) -> Result<(u64, i32)> {
    let head: [u8; 16] = get(stream)?;
    if number(&head, 0, 4)? as u32 != SIMPLE_REPLY_MAGIC {
        return Err(failure("the NBD server sent no reply where one must be".into()));
    }
    let status = match number(&head, 4, 4)? {
        0 => 0,
        // The numbers that the protocol knows are those of Linux; any other one is an I/O error.
        code @ (1 | 12 | 22 | 28 | 95) => -(code as i32),
        _ => -5,
    };
    Ok((number(&head, 8, 8)?, status))
}
