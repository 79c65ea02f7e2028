//! Instructions, each with what follows it in the pickle.

use std::ops::Range;
use std::str::FromStr;

use super::input::Input;
use super::node::{Node, Piece};
use super::text::unescaped;
use super::{at_byte, malformed};
use crate::error::{Kind, Result};

/// The newest protocol.
const PROTOCOL: u8 = 5;

/// What an instruction does.
#[derive(Debug)]
pub(super) enum Op {
    Push(Node),
    /// Nothing that matters here: a frame, a protocol.
    Skip,
    Stop,
    Mark,
    Pop,
    PopMark,
    Duplicate,
    /// A tuple of the topmost values, or of those since the mark.
    Tuple(Option<usize>),
    List,
    Dict,
    Append,
    Appends,
    SetItem,
    SetItems,
    Put(u64),
    Memoize,
    Get(u64),
    Global(Range<usize>, Range<usize>),
    StackGlobal,
    Reduce,
    Build,
    PersistentId,
    /// One that makes what is no data.
    Refused(&'static str),
}

/// The next instruction.
pub(super) fn next(input: &mut Input<'_>) -> Result<Op> {
    let at = input.place();
    let code = input.byte()?;
    if let Some(node) = literal(code, at, input)? {
        return Ok(Op::Push(node));
    }
    Ok(match code {
        0x80 => protocol(input)?,
        0x95 => input.take(8).map(|_| Op::Skip)?,
        b'.' => Op::Stop,
        b'(' => Op::Mark,
        b'0' => Op::Pop,
        b'1' => Op::PopMark,
        b'2' => Op::Duplicate,
        b't' => Op::Tuple(None),
        0x85..=0x87 => Op::Tuple(Some(usize::from(code - 0x84))),
        b'l' => Op::List,
        b'd' => Op::Dict,
        b'a' => Op::Append,
        b'e' => Op::Appends,
        b's' => Op::SetItem,
        b'u' => Op::SetItems,
        b'p' => Op::Put(number_line(input)?),
        b'q' => Op::Put(input.number(1)?),
        b'r' => Op::Put(input.number(4)?),
        0x94 => Op::Memoize,
        b'g' => Op::Get(number_line(input)?),
        b'h' => Op::Get(input.number(1)?),
        b'j' => Op::Get(input.number(4)?),
        b'c' => Op::Global(input.line()?, input.line()?),
        0x93 => Op::StackGlobal,
        b'R' => Op::Reduce,
        b'b' => Op::Build,
        b'Q' => Op::PersistentId,
        _ => Op::Refused(refused(code, at)?),
    })
}

/// Instructions that push a value of their own.
fn literal(code: u8, at: usize, input: &mut Input<'_>) -> Result<Option<Node>> {
    let bytes = |range| Node::Bytes(Piece::of_input(range));
    Ok(Some(match code {
        b'N' => Node::None,
        0x88 => Node::Bool(true),
        0x89 => Node::Bool(false),
        b'I' => int_or_bool_line(input)?,
        b'L' => Node::Int(long_line(input)?),
        b'K' => Node::Int(i64::from(input.byte()?)),
        b'M' => Node::Int(signed(input.number(2)?, 8)),
        b'J' => Node::Int(signed(input.number(4)?, 4)),
        0x8a => long(input, 1, at)?,
        0x8b => long(input, 4, at)?,
        b'F' => Node::Float(parsed(input.line_text()?, at)?),
        // The one number that is big-endian.
        b'G' => Node::Float(f64::from_bits(input.number(8)?.swap_bytes())),
        b'V' => escaped_text(input)?,
        0x8c => text(input, 1)?,
        b'X' => text(input, 4)?,
        0x8d => text(input, 8)?,
        b'C' => bytes(input.sized(1)?),
        b'B' => bytes(input.sized(4)?),
        // The second is for arrays that may be written to.
        0x8e | 0x96 => bytes(input.sized(8)?),
        b']' => Node::List(Vec::new()),
        b'}' => Node::Dict(Vec::new()),
        b')' => Node::Tuple(Vec::new()),
        _ => return Ok(None),
    }))
}

/// The name of a known instruction that is refused.
fn refused(code: u8, at: usize) -> Result<&'static str> {
    Ok(match code {
        b'P' => "PERSID",
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return Err(malformed(at, format!("`{code:#04x}` is no instruction"))),
    })
}

fn protocol(input: &mut Input<'_>) -> Result<Op> {
    let (at, version) = (input.place(), input.byte()?);
    if version <= PROTOCOL {
        return Ok(Op::Skip);
    }
    let message = format!("protocol `{version}` is unknown; this build reads `0` to `{PROTOCOL}`");
    Err(at_byte(Kind::UnsupportedVersion, at, message))
}

/// An integer of so many bytes, the rest of which its sign fills.
fn signed(number: u64, bytes: u32) -> i64 {
    let unused = u64::BITS - 8 * bytes;
    (number << unused).cast_signed() >> unused
}

fn long(input: &mut Input<'_>, width: usize, at: usize) -> Result<Node> {
    let range = input.sized(width)?;
    let bytes = input.all().get(range).unwrap_or_default();
    if bytes.len() > 8 {
        return Err(too_large(at));
    }
    let number = bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    Ok(Node::Int(if bytes.is_empty() { 0 } else { signed(number, 8.min(u32::try_from(bytes.len()).unwrap_or(8))) }))
}

fn too_large(at: usize) -> crate::error::Error {
    at_byte(Kind::LimitExceeded, at, "an integer has more than 64 bits")
}

fn int_or_bool_line(input: &mut Input<'_>) -> Result<Node> {
    let at = input.place();
    Ok(match input.line_text()? {
        "00" => Node::Bool(false),
        "01" => Node::Bool(true),
        line => Node::Int(decimal(line, at)?),
    })
}

fn long_line(input: &mut Input<'_>) -> Result<i64> {
    let at = input.place();
    let line = input.line_text()?;
    decimal(line.strip_suffix('L').unwrap_or(line), at)
}

fn decimal(line: &str, at: usize) -> Result<i64> {
    let digits = line.strip_prefix('-').unwrap_or(line);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return line.parse().map_err(|_| too_large(at));
    }
    parsed(line, at)
}

fn number_line(input: &mut Input<'_>) -> Result<u64> {
    let at = input.place();
    parsed(input.line_text()?, at)
}

fn parsed<T: FromStr>(line: &str, at: usize) -> Result<T> {
    let shown = || line.chars().take(40).flat_map(char::escape_debug).collect::<String>();
    line.parse().map_err(|_| malformed(at, format!("`{}` is no number", shown())))
}

fn text(input: &mut Input<'_>, width: usize) -> Result<Node> {
    let range = input.sized(width)?;
    let bytes = input.all().get(range.clone()).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(Node::Text(Piece::of_input(range))),
        Err(_) => Err(malformed(range.start, "a text is not UTF-8")),
    }
}

fn escaped_text(input: &mut Input<'_>) -> Result<Node> {
    let at = input.place();
    let range = input.line()?;
    let text = unescaped(input.all().get(range).unwrap_or_default(), at)?;
    Ok(Node::Text(Piece::made(text.into_bytes())))
}
