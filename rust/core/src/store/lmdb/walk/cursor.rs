//! The database without a name, in the order of its keys.

use super::DataFile;
use super::page::{Content, Node, Page, Role};
use crate::error::{Error, Kind, Result};

/// A place in the order of keys. Has one page of each level in memory, and reads no value until asked to.
pub(in crate::store::lmdb) struct Cursor<'a> {
    file: &'a DataFile,
    /// From the root to a leaf, each with the node that comes next.
    path: Vec<(Page, usize)>,
    key: Vec<u8>,
    current: Option<Node>,
}

impl<'a> Cursor<'a> {
    /// Before the first key that is not less than `key`.
    pub(in crate::store::lmdb) fn at(file: &'a DataFile, key: &[u8]) -> Result<Self> {
        let mut cursor = Self { file, path: Vec::new(), key: Vec::new(), current: None };
        if let Some(root) = file.meta.main.root {
            cursor.descend(root, Some(key))?;
        }
        Ok(cursor)
    }

    /// Goes to the next key. Ends also in a file whose pages lead back to each other: keys must ascend.
    pub(in crate::store::lmdb) fn advance(&mut self) -> Result<Option<&[u8]>> {
        loop {
            let Some((page, next)) = self.path.last_mut() else { return Ok(None) };
            let Some(node) = page.nodes.get(*next).cloned() else {
                self.path.pop();
                continue;
            };
            *next += 1;
            match node.content {
                Content::Child(child) => self.descend(child, None)?,
                Content::Tree(_) => {
                    let (path, name) = (self.file.shown(), page.key(&node).escape_ascii());
                    let message = format!("`{path}` holds the named database `{name}`, which no activation log has");
                    return Err(Error::new(Kind::NotAStore, message));
                }
                _ => break self.step(node),
            }
        }
    }

    /// The value of the key that it is at.
    pub(in crate::store::lmdb) fn value(&self) -> Result<Vec<u8>> {
        let (Some((page, _)), Some(node)) = (self.path.last(), &self.current) else { return Ok(Vec::new()) };
        Ok(self.file.value(page, node, usize::MAX)?.unwrap_or_default())
    }

    fn step(&mut self, node: Node) -> Result<Option<&[u8]>> {
        let Some((page, _)) = self.path.last() else { return Ok(None) };
        let key = page.key(&node);
        if self.current.is_some() && key <= &*self.key {
            return Err(self.file.wrong(page.number, "has a key that is not above that of the page before it"));
        }
        self.key.clear();
        self.key.extend_from_slice(key);
        self.current = Some(node);
        Ok(Some(&self.key))
    }

    fn descend(&mut self, mut number: u64, key: Option<&[u8]>) -> Result<()> {
        let depth = usize::from(self.file.meta.main.depth);
        loop {
            let levels = u16::try_from(depth.saturating_sub(self.path.len())).unwrap_or_default();
            let page = self.file.page(number, levels, Role::Main)?;
            let place = key.map_or(0, |key| page.position(key, Role::Main));
            match page.nodes.get(place).map(|node| &node.content) {
                Some(Content::Child(child)) => number = *child,
                _ => {
                    self.path.push((page, place));
                    return Ok(());
                }
            }
            self.path.push((page, place + 1));
        }
    }
}
