//! One page of a tree, every offset in it checked.

use std::cmp::Ordering;
use std::ops::Range;

use super::meta::{HEADER_BYTES, NUMBER_BYTES, TREE_BYTES, Tree, u16_at, u64_at};
use crate::error::{Error, Kind, Result};
use crate::format::{malformed, size};

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
/// Pages of several values a key.
const DUPLICATES: u16 = 0x20 | 0x40;

const POINTER_BYTES: usize = 2;
const NODE_BYTES: usize = 8;
const MAX_KEY_BYTES: usize = 511;

const OVERFLOW_VALUE: u16 = 0x01;
const TREE_VALUE: u16 = 0x02;

/// What a tree is for; it decides what its keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Pages that transactions gave back, by transaction.
    FreeList,
    /// The database without a name, which holds the records of the named ones.
    Main,
    /// A named database.
    Named,
}

impl Role {
    /// How keys of the tree sort. Keys of the free list are 8-byte integers.
    pub(super) fn order(self, a: &[u8], b: &[u8]) -> Ordering {
        match self {
            Self::FreeList => a.iter().rev().cmp(b.iter().rev()),
            Self::Main | Self::Named => a.cmp(b),
        }
    }

    fn check_key(self, bytes: usize) -> Result<()> {
        let fits = match self {
            Self::FreeList => bytes == NUMBER_BYTES,
            Self::Main | Self::Named => (1..=MAX_KEY_BYTES).contains(&bytes),
        };
        if fits { Ok(()) } else { Err(malformed(format!("a key of `{bytes}` bytes"))) }
    }
}

/// Where a key leads.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A page one level down.
    Child(u64),
    /// A value within the page.
    Inline(Range<usize>),
    /// A value on pages of its own.
    Overflow { first: u64, length: u64 },
    /// A named database.
    Tree(Tree),
}

/// A key with what it leads to.
#[derive(Clone, Debug)]
pub(super) struct Node {
    key: Range<usize>,
    pub(super) content: Content,
}

/// A branch or leaf page whose nodes lie within it, side by side, in the order of their keys.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) number: u64,
    bytes: Vec<u8>,
    pub(super) leaf: bool,
    pub(super) nodes: Vec<Node>,
}

impl Page {
    /// Reads page `number` of a tree.
    pub(super) fn parse(bytes: Vec<u8>, number: u64, role: Role) -> Result<Self> {
        let found = u64_at(&bytes, 0)?;
        if found != number {
            return Err(malformed(format!("says that it is page `{found}`")));
        }
        let flags = u16_at(&bytes, 10)?;
        if flags & DUPLICATES != 0 {
            let message = format!("has the flags `{flags:#06x}` of a database with several values a key");
            return Err(Error::new(Kind::UnsupportedVersion, message));
        }
        if flags != BRANCH && flags != LEAF {
            return Err(malformed(format!("has the flags `{flags:#06x}`, which no page of a tree has")));
        }
        let mut page = Self { number, bytes, leaf: flags == LEAF, nodes: Vec::new() };
        page.nodes = page.parse_nodes(role)?;
        page.check_order(role)?;
        Ok(page)
    }

    /// The bytes of a range; those of nodes are never beyond the end.
    pub(super) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }

    /// The key of a node.
    pub(super) fn key(&self, node: &Node) -> &[u8] {
        self.bytes(&node.key)
    }

    /// The node for `key`: of a leaf the one that has it, of a branch the one it lies under.
    pub(super) fn find(&self, key: &[u8], role: Role) -> Option<&Node> {
        if self.leaf {
            return self.nodes.iter().find(|node| self.key(node) == key);
        }
        let above = |node: &&Node| role.order(self.key(node), key) != Ordering::Greater;
        self.nodes.iter().skip(1).take_while(above).last().or(self.nodes.first())
    }

    /// The first node at or after `key`: of a leaf the first one whose key is not less, of a branch the one that such keys
    /// lie under.
    pub(super) fn position(&self, key: &[u8], role: Role) -> usize {
        if self.leaf {
            return self.nodes.partition_point(|node| role.order(self.key(node), key) == Ordering::Less);
        }
        // The first key of a branch bounds nothing.
        let inner = self.nodes.get(1..).unwrap_or_default();
        inner.partition_point(|node| role.order(self.key(node), key) != Ordering::Greater)
    }

    fn parse_nodes(&self, role: Role) -> Result<Vec<Node>> {
        let header = size(HEADER_BYTES)?;
        let (lower, upper) = (usize::from(u16_at(&self.bytes, 12)?), usize::from(u16_at(&self.bytes, 14)?));
        if lower < header || lower % POINTER_BYTES != 0 || lower > upper || upper % 2 != 0 || upper > self.bytes.len() {
            return Err(malformed(format!("its free space from `{lower}` to `{upper}` is impossible")));
        }
        let least = if self.leaf { 1 } else { 2 };
        let count = (lower - header) / POINTER_BYTES;
        if count < least {
            return Err(malformed(format!("has `{count}` nodes, and needs `{least}`")));
        }
        let (mut nodes, mut spans) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for index in 0..count {
            let at = usize::from(u16_at(&self.bytes, header + POINTER_BYTES * index)?);
            let node = self.parse_node(at, index, role).map_err(|e| e.within(format!("node `{index}`")))?;
            spans.push((at, self.end(&node)));
            nodes.push(node);
        }
        spans.sort_unstable();
        let end = spans.iter().try_fold(upper, |free, &(start, end)| (start == free).then_some(end));
        if end != Some(self.bytes.len()) {
            return Err(malformed("its nodes overlap, or leave gaps"));
        }
        Ok(nodes)
    }

    /// First byte behind a node. Nodes begin at even offsets.
    fn end(&self, node: &Node) -> usize {
        let end = match &node.content {
            Content::Child(_) => node.key.end,
            Content::Inline(value) => value.end,
            Content::Overflow { .. } => node.key.end + NUMBER_BYTES,
            Content::Tree(_) => node.key.end + TREE_BYTES,
        };
        end.next_multiple_of(2)
    }

    fn parse_node(&self, at: usize, index: usize, role: Role) -> Result<Node> {
        let low = (u64::from(u16_at(&self.bytes, at + 2)?) << 16) | u64::from(u16_at(&self.bytes, at)?);
        let flags = u16_at(&self.bytes, at + 4)?;
        let start = at + NODE_BYTES;
        let key = start..start + usize::from(u16_at(&self.bytes, at + 6)?);
        // The first key of a branch bounds nothing: LMDB leaves it empty and never compares it.
        if self.leaf || index > 0 {
            role.check_key(key.len())?;
        }
        let content = if self.leaf {
            self.parse_value(&key, low, flags, role)?
        } else {
            Content::Child(low | u64::from(flags) << 32)
        };
        let node = Node { key, content };
        if self.end(&node) > self.bytes.len() {
            return Err(malformed("lies beyond the end of the page"));
        }
        Ok(node)
    }

    fn parse_value(&self, key: &Range<usize>, length: u64, flags: u16, role: Role) -> Result<Content> {
        match flags {
            0 => {
                let end = key.end + size(length)?;
                // LMDB splits a page between two nodes, so each takes at most half of it.
                let half = (self.bytes.len() - size(HEADER_BYTES)?) / 2;
                let most = half - half % 2 - POINTER_BYTES;
                if NODE_BYTES + key.len() + (end - key.end) > most {
                    return Err(malformed(format!("a value of `{length}` bytes should be on pages of its own")));
                }
                Ok(Content::Inline(key.end..end))
            }
            OVERFLOW_VALUE => Ok(Content::Overflow { first: u64_at(&self.bytes, key.end)?, length }),
            TREE_VALUE if role == Role::Main => {
                let record = self.bytes(&(key.end..key.end + TREE_BYTES));
                if length != TREE_BYTES as u64 {
                    return Err(malformed(format!("a record of `{length}` bytes is no database")));
                }
                Tree::database(record).map(Content::Tree)
            }
            _ => Err(malformed(format!("has the flags `{flags:#06x}`, which no value has"))),
        }
    }

    fn check_order(&self, role: Role) -> Result<()> {
        let bounding = self.nodes.get(usize::from(!self.leaf)..).unwrap_or_default();
        let ascends = bounding.is_sorted_by(|a, b| role.order(self.key(a), self.key(b)) == Ordering::Less);
        if ascends { Ok(()) } else { Err(malformed("its keys are not in ascending order")) }
    }
}
