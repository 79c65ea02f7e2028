//! The keys of the database without a name.

use super::DataFile;
use super::page::{Content, Page, Role};
use crate::error::{Error, Kind, Result};

/// Keys in ascending order, in the memory of one page of each level; none after an error. Ends also in a file whose pages
/// lead back to each other: what does not ascend is an error.
pub(in crate::store::lmdb) struct Keys<'a> {
    file: &'a DataFile,
    /// From the root to a leaf, each with the node that comes next.
    path: Vec<(Page, usize)>,
    last: Option<Vec<u8>>,
}

impl<'a> Keys<'a> {
    pub(in crate::store::lmdb) fn new(file: &'a DataFile) -> Result<Self> {
        let mut keys = Self { file, path: Vec::new(), last: None };
        if let Some(root) = file.meta.main.root {
            keys.descend(root)?;
        }
        Ok(keys)
    }

    fn descend(&mut self, page: u64) -> Result<()> {
        let levels = usize::from(self.file.meta.main.depth).saturating_sub(self.path.len());
        let page = self.file.page(page, u16::try_from(levels).unwrap_or_default(), Role::Main)?;
        self.path.push((page, 0));
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let Some((page, next)) = self.path.last_mut() else { return Ok(None) };
            let Some(node) = page.nodes.get(*next) else {
                self.path.pop();
                continue;
            };
            *next += 1;
            let key = page.key(node);
            match node.content {
                Content::Child(child) => self.descend(child)?,
                Content::Tree(_) => {
                    let (path, name) = (self.file.shown(), key.escape_ascii());
                    let message = format!("`{path}` holds the named database `{name}`, which no activation log has");
                    return Err(Error::new(Kind::NotAStore, message));
                }
                _ if self.last.as_deref().is_some_and(|last| key <= last) => {
                    let message = "has a key that is not above that of the page before it";
                    return Err(self.file.wrong(page.number, message));
                }
                _ => {
                    self.last = Some(key.to_vec());
                    return Ok(self.last.clone());
                }
            }
        }
    }
}

impl Iterator for Keys<'_> {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.advance().transpose();
        if matches!(key, Some(Err(_))) {
            self.path.clear();
        }
        key
    }
}
