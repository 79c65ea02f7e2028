//! The first two pages of an LMDB data file: which format, which snapshot, where its trees begin.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::files::ReadFile;
use crate::format::{malformed, size};

/// Bytes before the content of a page.
pub(super) const HEADER_BYTES: u64 = 16;
/// Bytes that describe a tree.
pub(super) const TREE_BYTES: usize = 48;
/// Page numbers below this are meta pages.
pub(super) const META_PAGES: u64 = 2;
/// Bytes of a page number.
pub(super) const NUMBER_BYTES: usize = 8;

const META_BYTES: u64 = 152;
const MAGIC: u32 = 0xBEEF_C0DE;
const VERSION: u32 = 1;
const META_FLAGS: u16 = 0x08;
const INTEGER_KEYS: u16 = 0x08;
/// Flags of the environment that are kept beside those of the free list: a fixed map, no directory.
const ENVIRONMENT_FLAGS: u16 = 0x4001;
const NO_ROOT: u64 = u64::MAX;
/// LMDB's cursors hold a path of at most so many pages.
const MAX_DEPTH: u16 = 32;
const PAGE_SIZES: std::ops::RangeInclusive<u64> = 4096..=32_768;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().ok_or_else(|| malformed(format!("`{N}` bytes at `{at}` lie beyond its end")))
}

/// What a tree says it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) branch_pages: u64,
    pub(super) leaf_pages: u64,
    pub(super) overflow_pages: u64,
    pub(super) entries: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { branch_pages, leaf_pages, overflow_pages, entries } = self;
        write!(f, "`{branch_pages}` + `{leaf_pages}` + `{overflow_pages}` pages with `{entries}` entries")
    }
}

/// One B+tree: a database, or the free list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    flags: u16,
    /// Pages from the root to a leaf; 0 without a root.
    pub(super) depth: u16,
    pub(super) counts: Counts,
    pub(super) root: Option<u64>,
}

impl Tree {
    /// Reads the record of a tree. Its root may still be anywhere.
    fn parse(record: &[u8]) -> Result<Self> {
        let counts = Counts {
            branch_pages: u64_at(record, 8)?,
            leaf_pages: u64_at(record, 16)?,
            overflow_pages: u64_at(record, 24)?,
            entries: u64_at(record, 32)?,
        };
        let root = Some(u64_at(record, 40)?).filter(|&root| root != NO_ROOT);
        let tree = Self { flags: u16_at(record, 4)?, depth: u16_at(record, 6)?, counts, root };
        match (tree.root, tree.depth) {
            (None, 0) if tree.counts == Counts::default() => Ok(tree),
            (Some(_), 1..=MAX_DEPTH) => Ok(tree),
            (None, depth) => Err(malformed(format!("a tree of depth `{depth}` with pages or entries has no root"))),
            (Some(_), depth) => Err(malformed(format!("a tree has the impossible depth `{depth}`"))),
        }
    }

    /// Reads the record of a database. Flags mean several values a key, or another order of keys.
    pub(super) fn database(record: &[u8]) -> Result<Self> {
        let tree = Self::parse(record)?;
        if tree.flags == 0 {
            return Ok(tree);
        }
        let message = format!("a database has the flags `{:#06x}`; this build reads those without flags", tree.flags);
        Err(Error::new(Kind::UnsupportedVersion, message))
    }

    fn free_list(record: &[u8]) -> Result<Self> {
        let tree = Self::parse(record)?;
        if tree.flags & !ENVIRONMENT_FLAGS != INTEGER_KEYS {
            return Err(malformed(format!("the free list has the flags `{:#06x}`", tree.flags)));
        }
        Ok(tree)
    }
}

/// The state after one commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    pub(super) page_size: u64,
    pub(super) free_list: Tree,
    pub(super) main: Tree,
    /// The highest page number given out.
    pub(super) last_page: u64,
    pub(super) txnid: u64,
}

impl Meta {
    /// The state after the last commit.
    pub(super) fn newest(file: &ReadFile) -> Result<Self> {
        let length = file.length()?;
        let first = read_meta(file, length, 0, 0)?;
        let second = read_meta(file, length, 1, first.page_size)?;
        let (older, newer) = if first.txnid < second.txnid { (first, second) } else { (second, first) };
        let in_turn = newer.txnid == older.txnid + 1 || newer.txnid == 0;
        if in_turn && newer.page_size == older.page_size && newer.last_page >= older.last_page {
            return Ok(newer);
        }
        let message = format!(
            "`{}`: its two meta pages, of transactions `{}` and `{}`, contradict each other",
            file.path().display(),
            older.txnid,
            newer.txnid
        );
        Err(malformed(message))
    }

    fn parse(bytes: &[u8], number: u64) -> Result<Self> {
        let meta = Self {
            page_size: u32_at(bytes, 40)?.into(),
            free_list: Tree::free_list(bytes.get(40..88).unwrap_or_default())?,
            main: Tree::database(bytes.get(88..136).unwrap_or_default())?,
            last_page: u64_at(bytes, 136)?,
            txnid: u64_at(bytes, 144)?,
        };
        if u64_at(bytes, 0)? != number || u16_at(bytes, 10)? != META_FLAGS {
            return Err(malformed("is no meta page"));
        }
        if (u32_at(bytes, 16)?, u32_at(bytes, 20)?) != (MAGIC, VERSION) {
            return Err(malformed("has another format than the first page"));
        }
        if !PAGE_SIZES.contains(&meta.page_size) || !meta.page_size.is_power_of_two() {
            return Err(malformed(format!("pages of `{}` bytes", meta.page_size)));
        }
        // LMDB finds the meta page of a transaction by the lowest bit of its number.
        if (meta.txnid != 0 && meta.txnid % META_PAGES != number) || meta.txnid == u64::MAX {
            return Err(malformed(format!("transaction `{}` is never written here", meta.txnid)));
        }
        let roots = [meta.free_list.root, meta.main.root];
        if meta.last_page == u64::MAX || roots.into_iter().flatten().any(|root| root > meta.last_page) {
            return Err(malformed(format!("a root lies beyond the last page, `{}`", meta.last_page)));
        }
        Ok(meta)
    }
}

fn read_meta(file: &ReadFile, length: u64, number: u64, offset: u64) -> Result<Meta> {
    let mut bytes = vec![0; size(META_BYTES.min(length.saturating_sub(offset)))?];
    file.read_at(offset, &mut bytes)?;
    if number == 0 {
        sniff(&bytes, file.path())?;
    }
    if (bytes.len() as u64) < META_BYTES {
        let message = format!("`{}` ends after `{length}` bytes, within its meta pages", file.path().display());
        return Err(Error::new(Kind::Truncated, message));
    }
    Meta::parse(&bytes, number).map_err(|e| e.within(format!("`{}` page {number}", file.path().display())))
}

/// Refuses what LMDB 0.9 did not write. LMDB 1.0 has a longer page header, so the format word lies further behind.
fn sniff(bytes: &[u8], path: &Path) -> Result<()> {
    let word = |at| u32_at(bytes, at).ok();
    let path = path.display();
    let (kind, message) = match (word(16), word(24)) {
        (Some(MAGIC), _) => match word(20) {
            Some(VERSION) | None => return Ok(()),
            Some(other) => (
                Kind::UnsupportedVersion,
                format!("`{path}` is an LMDB file of version `{other}`; this build reads `1`"),
            ),
        },
        (_, Some(MAGIC)) => {
            let message = format!(
                "`{path}` is in the format of LMDB 1.0, which this build, made for LMDB 0.9, cannot read; copy it with \
                 `mdb_dump` of LMDB 1.0 and `mdb_load` of LMDB 0.9"
            );
            (Kind::UnsupportedVersion, message)
        }
        _ => (Kind::NotAStore, format!("`{path}` is not an LMDB file")),
    };
    Err(Error::new(kind, message))
}
