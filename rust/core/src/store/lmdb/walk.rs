//! Reads the data file of LMDB 0.9 without LMDB, which trusts every offset in it: a single changed byte can end the
//! process. Here nothing is trusted, and a file that passes [`DataFile::walk`] holds nothing that LMDB trips over. The
//! file must not be written meanwhile.

pub(super) mod cursor;
mod meta;
mod page;

use std::cmp::Ordering;
use std::path::Path;

use self::meta::{Counts, HEADER_BYTES, META_PAGES, Meta, NUMBER_BYTES, Tree, u16_at, u32_at, u64_at};
use self::page::{Content, Node, Page, Role};
use crate::error::{Error, Kind, Result};
use crate::files::ReadFile;
use crate::format::{malformed, size};

const OVERFLOW: u16 = 0x04;

/// An LMDB data file, as its last commit left it.
#[derive(Debug)]
pub(super) struct DataFile {
    file: ReadFile,
    meta: Meta,
    /// Whole pages that the file has. Those it has not, up to the last one given out, are free.
    pages: u64,
}

impl DataFile {
    /// Opens a file of LMDB 0.9 and reads its meta pages; says what any other file is.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = ReadFile::open(path)?;
        let meta = Meta::newest(&file)?;
        let length = file.length()?;
        let opened = Self { pages: length / meta.page_size, file, meta };
        // LMDB does not write pages at the end that a transaction took and gave back; the free list has them, eight
        // bytes each.
        if opened.pages < META_PAGES
            || opened.meta.last_page.saturating_sub(opened.pages) >= length / NUMBER_BYTES as u64
        {
            return Err(opened.too_short());
        }
        Ok(opened)
    }

    /// Number of the last commit.
    pub(super) fn txnid(&self) -> u64 {
        self.meta.txnid
    }

    /// How many entries the database without a name has.
    pub(super) fn entries(&self) -> u64 {
        self.meta.main.counts.entries
    }

    /// Says whether what was read so far is that of one commit. Pages of the last one are not used again before the next
    /// one ends.
    pub(super) fn check_unwritten(&self) -> Result<()> {
        if Meta::newest(&self.file)?.txnid == self.meta.txnid {
            return Ok(());
        }
        let message =
            format!("`{}` was written to while it was read; let its writer finish, then try again", self.shown());
        Err(Error::new(Kind::Locked, message))
    }

    /// Checks every page of every tree, so that LMDB can read the file; if `thorough` also all that only its writing
    /// relies on: headers of overflow pages, and the pages that the free list names.
    pub(super) fn walk(&self, thorough: bool) -> Result<()> {
        let mut walk = Walk::new(self, thorough)?;
        walk.tree(&self.meta.free_list, Role::FreeList).map_err(|e| e.within("the free list"))?;
        walk.tree(&self.meta.main, Role::Main)?;
        for (name, tree) in std::mem::take(&mut walk.named) {
            let named = || format!("the database `{}`", String::from_utf8_lossy(&name));
            walk.tree(&tree, Role::Named).map_err(|e| e.within(named()))?;
        }
        if thorough { walk.check_missing() } else { Ok(()) }
    }

    /// The value of `key` in a named database, or in the one without a name, if both are there. Reads the pages that
    /// lead to it, whether or not the file was walked. A value above `limit` bytes is refused.
    pub(super) fn get(&self, database: Option<&str>, key: &[u8], limit: usize) -> Result<Option<Vec<u8>>> {
        let (tree, role) = match database {
            None => (self.meta.main, Role::Main),
            Some(name) => match self.find(&self.meta.main, Role::Main, name.as_bytes())? {
                Some((_, Node { content: Content::Tree(tree), .. })) => (tree, Role::Named),
                _ => return Ok(None),
            },
        };
        match self.find(&tree, role, key)? {
            None => Ok(None),
            Some((page, node)) => self.value(&page, &node, limit),
        }
    }

    fn find(&self, tree: &Tree, role: Role, key: &[u8]) -> Result<Option<(Page, Node)>> {
        let Some(mut number) = tree.root else { return Ok(None) };
        for levels in (1..=tree.depth).rev() {
            let page = self.page(number, levels, role)?;
            let found = page.find(key, role).cloned();
            match found {
                Some(Node { content: Content::Child(child), .. }) => number = child,
                found => return Ok(found.map(|node| (page, node))),
            }
        }
        Ok(None)
    }

    fn value(&self, page: &Page, node: &Node, limit: usize) -> Result<Option<Vec<u8>>> {
        let (first, length) = match &node.content {
            Content::Inline(range) if range.len() <= limit => return Ok(Some(page.bytes(range).to_vec())),
            Content::Inline(range) => (0, range.len() as u64),
            Content::Overflow { first, length } => (*first, *length),
            Content::Child(_) | Content::Tree(_) => return Ok(None),
        };
        if length > limit as u64 {
            let message = format!("`{}` has a value of `{length}` bytes, above the limit of `{limit}`", self.shown());
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        self.overflow_pages(first, length)?;
        let mut value = vec![0; size(length)?];
        self.file.read_at(first * self.meta.page_size + HEADER_BYTES, &mut value)?;
        Ok(Some(value))
    }

    /// A page of a tree with `levels` levels from it down.
    fn page(&self, number: u64, levels: u16, role: Role) -> Result<Page> {
        self.check_range(number, 1)?;
        let mut bytes = vec![0; size(self.meta.page_size)?];
        self.file.read_at(number * self.meta.page_size, &mut bytes)?;
        let page = Page::parse(bytes, number, role).map_err(|e| e.within(self.at(number)))?;
        if page.leaf != (levels == 1) {
            return Err(self.wrong(number, "is not at the depth that its tree has"));
        }
        Ok(page)
    }

    /// Checks the header of a value's own pages; says how many there are. A value that was overwritten by a smaller one
    /// within a transaction has more than it needs.
    fn overflow_pages(&self, first: u64, length: u64) -> Result<u64> {
        let needed = self.pages_for(length);
        self.check_range(first, needed)?;
        let mut header = vec![0; size(HEADER_BYTES)?];
        self.file.read_at(first * self.meta.page_size, &mut header)?;
        let pages = u64::from(u32_at(&header, 12)?);
        if u64_at(&header, 0)? != first || u16_at(&header, 10)? != OVERFLOW || pages < needed {
            return Err(self.wrong(first, &format!("does not begin a value of `{length}` bytes")));
        }
        self.check_range(first, pages)?;
        Ok(pages)
    }

    fn pages_for(&self, length: u64) -> u64 {
        (HEADER_BYTES + length).div_ceil(self.meta.page_size)
    }

    /// Pages in use are pages given out, and are in the file.
    fn check_range(&self, first: u64, pages: u64) -> Result<()> {
        let last = first.saturating_add(pages.saturating_sub(1));
        if first < META_PAGES || last > self.meta.last_page {
            return Err(self.wrong(first, &format!("is not among the pages from `2` to `{}`", self.meta.last_page)));
        }
        if last < self.pages { Ok(()) } else { Err(self.too_short()) }
    }

    fn too_short(&self) -> Error {
        let (path, had) = (self.shown(), u128::from(self.meta.last_page) + 1);
        let message = format!("`{path}` has `{}` pages, of `{had}` that were committed", self.pages);
        Error::new(Kind::Truncated, message)
    }

    fn wrong(&self, page: u64, message: &str) -> Error {
        malformed(message).within(self.at(page))
    }

    fn at(&self, page: u64) -> String {
        format!("`{}` page {page}", self.shown())
    }

    fn shown(&self) -> std::path::Display<'_> {
        self.file.path().display()
    }
}

/// The keys that a page may have: from the first, and below the second.
type Bounds<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// A walk over the trees of a file.
struct Walk<'a> {
    file: &'a DataFile,
    thorough: bool,
    /// A bit for each page given out: whether a tree or the free list has it.
    seen: Vec<u64>,
    /// The records of databases that the main one holds.
    named: Vec<(Vec<u8>, Tree)>,
}

impl<'a> Walk<'a> {
    fn new(file: &'a DataFile, thorough: bool) -> Result<Self> {
        let words = size(file.meta.last_page / u64::from(u64::BITS) + 1)?;
        Ok(Self { file, thorough, seen: vec![0; words], named: Vec::new() })
    }

    fn tree(&mut self, tree: &Tree, role: Role) -> Result<()> {
        let Some(root) = tree.root else { return Ok(()) };
        let mut counts = Counts::default();
        self.visit(root, tree.depth, (None, None), role, &mut counts)?;
        if !self.thorough {
            // Without the headers of overflow pages, their number is not known.
            counts.overflow_pages = tree.counts.overflow_pages;
        }
        if counts == tree.counts {
            return Ok(());
        }
        Err(self.file.wrong(root, &format!("its tree has {counts}, and should have {}", tree.counts)))
    }

    fn visit(&mut self, number: u64, levels: u16, bounds: Bounds<'_>, role: Role, counts: &mut Counts) -> Result<()> {
        let page = self.file.page(number, levels, role)?;
        self.take(number, 1)?;
        self.check_bounds(number, &page, bounds, role)?;
        if page.leaf {
            counts.leaf_pages += 1;
            counts.entries += page.nodes.len() as u64;
            return page.nodes.iter().try_for_each(|node| self.leaf_node(number, &page, node, role, counts));
        }
        counts.branch_pages += 1;
        for (index, node) in page.nodes.iter().enumerate() {
            let Content::Child(child) = node.content else { continue };
            let low = if index == 0 { bounds.0 } else { Some(page.key(node)) };
            let high = page.nodes.get(index + 1).map(|next| page.key(next)).or(bounds.1);
            self.visit(child, levels - 1, (low, high), role, counts)?;
        }
        Ok(())
    }

    fn check_bounds(&self, number: u64, page: &Page, (low, high): Bounds<'_>, role: Role) -> Result<()> {
        // The first key of a branch bounds nothing.
        let mut bounding = page.nodes.iter().skip(usize::from(!page.leaf));
        let below = |node: &Node| low.is_some_and(|low| role.order(page.key(node), low) == Ordering::Less);
        let above = |node: &Node| high.is_some_and(|high| role.order(page.key(node), high) != Ordering::Less);
        // Keys ascend within a page.
        if bounding.next().is_some_and(below) || page.nodes.last().is_some_and(above) {
            return Err(self.file.wrong(number, "has a key that its parent does not lead to"));
        }
        Ok(())
    }

    fn leaf_node(&mut self, number: u64, page: &Page, node: &Node, role: Role, counts: &mut Counts) -> Result<()> {
        match &node.content {
            Content::Tree(tree) => self.named.push((page.key(node).to_vec(), *tree)),
            Content::Overflow { first, length } => {
                let mut pages = self.file.pages_for(*length);
                self.file.check_range(*first, pages)?;
                if self.thorough {
                    pages = self.file.overflow_pages(*first, *length)?;
                }
                self.take(*first, pages)?;
                counts.overflow_pages += pages;
            }
            Content::Child(_) | Content::Inline(_) => {}
        }
        if self.thorough && role == Role::FreeList {
            self.free_pages(page, node).map_err(|e| e.within(self.file.at(number)))?;
        }
        Ok(())
    }

    /// Checks what one transaction gave back: a count, then as many page numbers, descending.
    fn free_pages(&mut self, page: &Page, node: &Node) -> Result<()> {
        let txnid = u64_at(page.key(node), 0)?;
        if txnid == 0 || txnid > self.file.meta.txnid {
            return Err(malformed(format!("has free pages of transaction `{txnid}`, which was never")));
        }
        let value = self.file.value(page, node, usize::MAX)?.unwrap_or_default();
        let (count, numbers) = (size(u64_at(&value, 0)?)?, value.get(NUMBER_BYTES..).unwrap_or_default());
        let mut numbers = numbers.chunks_exact(NUMBER_BYTES).map(|number| u64_at(number, 0));
        if count > numbers.len() {
            return Err(malformed(format!("has `{count}` free pages in a value of `{}` bytes", value.len())));
        }
        let mut above = self.file.meta.last_page.saturating_add(1);
        for number in numbers.by_ref().take(count) {
            let number = number?;
            if number < META_PAGES || number >= above {
                return Err(malformed(format!("free page `{number}` is out of order or range")));
            }
            self.take(number, 1)?;
            above = number;
        }
        Ok(())
    }

    /// Marks pages; each belongs to one thing.
    fn take(&mut self, first: u64, pages: u64) -> Result<()> {
        let bits = u64::from(u64::BITS);
        for number in first..first.saturating_add(pages) {
            let bit = 1 << (number % bits);
            match self.seen.get_mut(size(number / bits)?) {
                Some(word) if *word & bit == 0 => *word |= bit,
                _ => return Err(self.file.wrong(number, "is used twice")),
            }
        }
        Ok(())
    }

    /// Pages that the file does not have must be free.
    fn check_missing(&self) -> Result<()> {
        let bits = u64::from(u64::BITS);
        for number in self.file.pages..=self.file.meta.last_page {
            let word = self.seen.get(size(number / bits)?).copied().unwrap_or_default();
            if word & (1 << (number % bits)) == 0 {
                return Err(self.file.too_short());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use heed::types::Bytes;
    use heed::{CommitOrAbort, CompactionOption, Database, Env, EnvFlags, EnvOpenOptions, WithoutTls};
    use tempfile::TempDir;

    use super::*;

    const DATABASES: [Option<&str>; 4] = [None, Some("entries"), Some("index"), Some("models")];
    const PAGE: usize = 4096;

    type Contents = BTreeMap<(Option<&'static str>, Vec<u8>), Vec<u8>>;

    /// Deterministic bits (xorshift).
    struct Noise(u64);

    impl Noise {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 11).unwrap() % end
        }
    }

    /// Opens an environment of a test's own; nothing else has it open.
    #[allow(unsafe_code, reason = "LMDB maps the file")]
    fn environment(folder: &Path) -> heed::Result<Env<WithoutTls>> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        unsafe { options.map_size(64 << 20).max_dbs(8).flags(EnvFlags::NO_SYNC).open(folder) }
    }

    /// The databases of [`DATABASES`], made where they are missing.
    fn databases(env: &Env<WithoutTls>) -> heed::Result<[Database<'static, Bytes, Bytes>; 4]> {
        let made = env.create_databases_and_commit(env.write_txn()?, |opener, txn| {
            let [a, b, c, d] = DATABASES.map(|name| opener.create_database::<Bytes, Bytes>(txn, name));
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit([a?, b?, c?, d?]))
        })?;
        Ok(made.unwrap_commit())
    }

    fn place(name: Option<&str>) -> usize {
        DATABASES.iter().position(|&known| known == name).unwrap()
    }

    fn value_of(noise: &mut Noise) -> Vec<u8> {
        let most = [40, 40, 300, 1_900, 2_100, 30_000][noise.below(6)];
        let (length, first) = (noise.below(most), noise.below(256));
        (0..length).map(|n| u8::try_from((first + n * 7) % 251).unwrap()).collect()
    }

    /// Puts, replaces and deletes in many transactions, some of which change what they wrote themselves.
    fn change(env: &Env<WithoutTls>, contents: &mut Contents, transactions: usize, noise: &mut Noise) {
        let databases = databases(env).unwrap();
        for _ in 0..transactions {
            let mut txn = env.write_txn().unwrap();
            for _ in 0..noise.below(90) {
                let name = DATABASES[noise.below(20).min(3)];
                let keys = if name.is_none() { 8 } else { 700 };
                let key = format!("key {} {}", noise.below(keys), "long ".repeat(noise.below(3) * noise.below(20)));
                let key = key.into_bytes();
                if noise.below(3) == 0 {
                    let known = contents.keys().nth(noise.below(contents.len() + 1)).cloned();
                    let (name, key) = known.unwrap_or((name, key));
                    let deleted = databases[place(name)].delete(&mut txn, &key).unwrap();
                    assert_eq!(deleted, contents.remove(&(name, key)).is_some());
                } else {
                    for _ in 0..=noise.below(2) {
                        let value = value_of(noise);
                        databases[place(name)].put(&mut txn, &key, &value).unwrap();
                        contents.insert((name, key.clone()), value);
                    }
                }
            }
            txn.commit().unwrap();
        }
    }

    fn sample(seed: u64, transactions: usize) -> (Vec<u8>, Contents) {
        let folder = TempDir::new().unwrap();
        let env = environment(folder.path()).unwrap();
        let mut contents = Contents::new();
        change(&env, &mut contents, transactions, &mut Noise(seed));
        env.prepare_for_closing().wait();
        (fs::read(folder.path().join("data.mdb")).unwrap(), contents)
    }

    /// A file of these bytes, in a folder of its own.
    struct Copy {
        folder: TempDir,
    }

    impl Copy {
        fn of(bytes: &[u8]) -> Self {
            let folder = TempDir::new().unwrap();
            fs::write(folder.path().join("data.mdb"), bytes).unwrap();
            Self { folder }
        }

        fn open(&self) -> Result<DataFile> {
            DataFile::open(&self.folder.path().join("data.mdb"))
        }

        fn walk(&self, thorough: bool) -> Result<DataFile> {
            let file = self.open()?;
            file.walk(thorough)?;
            Ok(file)
        }

        /// Lets LMDB read every byte of every value.
        fn read(&self) -> heed::Result<Contents> {
            let env = environment(self.folder.path())?;
            let contents = (|| {
                let opened = env.open_databases_and_commit(env.read_txn()?, |opener, txn| {
                    let [a, b, c, d] = DATABASES.map(|name| opener.open_database::<Bytes, Bytes>(txn, name));
                    Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit([a?, b?, c?, d?]))
                })?;
                let (txn, mut contents) = (env.read_txn()?, Contents::new());
                for (name, database) in DATABASES.into_iter().zip(opened.unwrap_commit()) {
                    let Some(database) = database else { continue };
                    for item in database.iter(&txn)? {
                        let (key, value) = item?;
                        if name.is_some() || key.starts_with(b"key") {
                            contents.insert((name, key.to_vec()), value.to_vec());
                        }
                    }
                }
                Ok(contents)
            })();
            env.prepare_for_closing().wait();
            contents
        }

        /// Lets LMDB replace and delete everything, and use the free list.
        fn rewrite(&self, contents: &Contents) -> heed::Result<()> {
            let env = environment(self.folder.path())?;
            let written = (|| {
                let databases = databases(&env)?;
                for round in 0..3 {
                    let mut txn = env.write_txn()?;
                    for (index, ((name, key), value)) in contents.iter().enumerate() {
                        let database = databases[place(*name)];
                        if index % 4 == round {
                            database.delete(&mut txn, key)?;
                        } else {
                            database.put(&mut txn, key, &[value.as_slice(), b"more"].concat())?;
                        }
                    }
                    txn.commit()?;
                }
                Ok(())
            })();
            env.prepare_for_closing().wait();
            written
        }
    }

    /// Offsets of headers, pointers, node headers and numbers of overflow pages of all pages in use, a list for each of
    /// these; last, the bytes of the free list.
    fn structure(bytes: &[u8]) -> [Vec<usize>; 5] {
        let copy = Copy::of(bytes);
        let file = copy.open().unwrap();
        let mut walk = Walk::new(&file, false).unwrap();
        walk.tree(&file.meta.free_list, Role::FreeList).unwrap();
        let of_free_list = walk.seen.clone();
        walk.tree(&file.meta.main, Role::Main).unwrap();
        for (_, tree) in std::mem::take(&mut walk.named) {
            walk.tree(&tree, Role::Named).unwrap();
        }
        let mut found: [Vec<usize>; 5] = Default::default();
        let has = |seen: &[u64], number: usize| seen[number / 64] >> (number % 64) & 1 == 1;
        for number in (0..bytes.len() / PAGE).filter(|&number| has(&walk.seen, number)) {
            let (start, page) = (number * PAGE, &bytes[number * PAGE..][..PAGE]);
            if u64_at(page, 0).unwrap() != number as u64 {
                continue;
            }
            found[0].extend(start..start + 16);
            if has(&of_free_list, number) {
                found[4].extend(start..start + PAGE);
            }
            let pointers = if page[10] == 4 { 0 } else { usize::from(u16_at(page, 12).unwrap()) - 16 };
            for index in 0..pointers / 2 {
                let at = usize::from(u16_at(page, 16 + 2 * index).unwrap());
                found[1].extend(start + 16 + 2 * index..start + 18 + 2 * index);
                found[2].extend(start + at..start + at + 8);
                if page[10] == 2 && page[at + 4] == 1 {
                    let number = at + 8 + usize::from(u16_at(page, at + 6).unwrap());
                    found[3].extend(start + number..start + number + 8);
                }
            }
        }
        found
    }

    /// What a damaged file may do: be refused, or give values that differ in length or bytes alone, and let LMDB read
    /// and, after a thorough walk, write. Says how the two walks decided.
    fn check_damaged(bytes: &[u8], contents: &Contents, what: &str) -> (bool, bool) {
        let copy = Copy::of(bytes);
        let Ok(file) = copy.open() else { return (false, false) };
        let values: Vec<_> = contents.keys().map(|(name, key)| file.get(*name, key, 1 << 20)).collect();
        let (quick, thorough) = (file.walk(false), file.walk(true));
        assert!(quick.is_ok() || thorough.is_err(), "{what}: {thorough:?}");
        for error in [&quick, &thorough].into_iter().filter_map(|result| result.as_ref().err()) {
            assert!(error.kind().is_damage(), "{what}: {error}");
        }
        if quick.is_ok() {
            let read = copy.read().unwrap();
            assert_eq!(read.len(), contents.len(), "{what}");
            for (((known, expected), (found, seen)), value) in contents.iter().zip(&read).zip(values) {
                let close = |a: &[u8], b: &[u8]| a.starts_with(b) || b.starts_with(a);
                match value {
                    Err(e) => assert!(thorough.is_err(), "{what}: {e}"),
                    Ok(Some(value)) => {
                        assert!(known == found && &value == seen, "{what}");
                        // Only the free list says that a value's pages are old ones.
                        assert!(close(&value, expected) || thorough.is_err(), "{what}");
                    }
                    // A byte went from the value to the key, or back.
                    Ok(None) => {
                        assert!(found.1.len().abs_diff(known.1.len()) == 1 && close(&found.1, &known.1), "{what}");
                        assert_eq!(file.get(found.0, &found.1, 1 << 20).unwrap().as_ref(), Some(seen), "{what}");
                    }
                }
            }
        }
        if thorough.is_ok() {
            copy.rewrite(contents).unwrap();
            copy.walk(true).unwrap();
        }
        (quick.is_ok(), thorough.is_ok())
    }

    #[test]
    fn undamaged_files_pass_and_give_what_lmdb_gives() {
        for seed in 1..9 {
            let (bytes, contents) = sample(seed, 40);
            let copy = Copy::of(&bytes);
            copy.walk(false).unwrap();
            let file = copy.walk(true).unwrap();
            let env = environment(copy.folder.path()).unwrap();
            assert_eq!(file.txnid(), env.info().last_txn_id as u64);
            env.prepare_for_closing().wait();
            assert_eq!(copy.read().unwrap(), contents);
            let known = contents.iter().map(|((name, key), value)| (*name, key, value));
            for (name, key, value) in known {
                assert_eq!(file.get(name, key, value.len()).unwrap().as_ref(), Some(value));
                assert_eq!(file.get(name, &[key.as_slice(), b"!"].concat(), 0).unwrap(), None);
                if !value.is_empty() {
                    assert_eq!(file.get(name, key, value.len() - 1).unwrap_err().kind(), Kind::LimitExceeded);
                }
            }
            assert_eq!(file.get(Some("missing"), b"key", 9).unwrap(), None);
            assert_eq!(file.get(None, b"entries", 99).unwrap(), None);
        }
    }

    #[test]
    fn a_sample_has_all_that_can_be_damaged() {
        let (bytes, _) = sample(1, 40);
        let copy = Copy::of(&bytes);
        let file = copy.walk(true).unwrap();
        let mut walk = Walk::new(&file, true).unwrap();
        walk.tree(&file.meta.main, Role::Main).unwrap();
        let entries = walk.named.iter().map(|(_, tree)| tree.depth).max();
        assert!(entries >= Some(3), "{entries:?}");
        assert!(structure(&bytes).iter().all(|offsets| offsets.len() > 100));
    }

    #[test]
    fn new_emptied_and_compacted_files_pass() {
        let folder = TempDir::new().unwrap();
        let env = environment(folder.path()).unwrap();
        let path = folder.path().join("data.mdb");
        DataFile::open(&path).unwrap().walk(true).unwrap();
        let mut contents = Contents::new();
        change(&env, &mut contents, 12, &mut Noise(77));
        let copied = folder.path().join("copied.mdb");
        env.copy_to_path(&copied, CompactionOption::Enabled).unwrap();
        let file = DataFile::open(&copied).unwrap();
        file.walk(true).unwrap();
        for ((name, key), value) in &contents {
            assert_eq!(file.get(*name, key, value.len()).unwrap().as_ref(), Some(value));
        }
        let databases = databases(&env).unwrap();
        let mut txn = env.write_txn().unwrap();
        for (name, key) in contents.keys() {
            assert!(databases[place(*name)].delete(&mut txn, key).unwrap());
        }
        txn.commit().unwrap();
        DataFile::open(&path).unwrap().walk(true).unwrap();
        env.prepare_for_closing().wait();
    }

    #[test]
    fn pages_given_back_may_be_missing_at_the_end() {
        let folder = TempDir::new().unwrap();
        let env = environment(folder.path()).unwrap();
        let [_, _, database, _] = databases(&env).unwrap();
        for round in 0..9 {
            let mut txn = env.write_txn().unwrap();
            database.put(&mut txn, b"key", &[round; 9_000]).unwrap();
            txn.commit().unwrap();
        }
        let mut txn = env.write_txn().unwrap();
        for number in 0..900_u32 {
            database.put(&mut txn, &number.to_be_bytes(), &[7; 300]).unwrap();
        }
        for number in (3..900_u32).rev() {
            database.delete(&mut txn, &number.to_be_bytes()).unwrap();
        }
        txn.commit().unwrap();
        env.prepare_for_closing().wait();
        let file = DataFile::open(&folder.path().join("data.mdb")).unwrap();
        assert!(file.pages <= file.meta.last_page, "{} {}", file.pages, file.meta.last_page);
        file.walk(true).unwrap();
        assert_eq!(file.get(Some("index"), &2_u32.to_be_bytes(), 300).unwrap(), Some(vec![7; 300]));
    }

    #[test]
    fn a_changed_byte_of_structure_is_refused_or_harmless() {
        let (bytes, contents) = sample(3, 24);
        let (structure, mut noise) = (structure(&bytes), Noise(99));
        let (mut quick, mut thorough) = (0, 0);
        for round in 0..1_000 {
            let offsets = &structure[round % 5];
            let offset = offsets[noise.below(offsets.len())];
            let mut changed = bytes.clone();
            changed[offset] ^=
                if round % 2 == 0 { 1 << noise.below(8) } else { u8::try_from(1 + noise.below(255)).unwrap() };
            let accepted =
                check_damaged(&changed, &contents, &format!("byte {} of page {}", offset % PAGE, offset / PAGE));
            quick += usize::from(accepted.0);
            thorough += usize::from(accepted.1);
        }
        // Accepted: unused bytes of headers, the free list when not thorough, lengths within the same space.
        assert!(quick < 500 && (10..300).contains(&thorough), "{quick} {thorough}");
    }

    #[test]
    fn a_changed_byte_of_a_meta_page_is_refused_or_harmless() {
        let (bytes, contents) = sample(5, 6);
        let (mut noise, mut accepted) = (Noise(11), 0);
        for at in (0..152).chain(PAGE..PAGE + 152).flat_map(|at| [at; 3]) {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << noise.below(8);
            let copy = Copy::of(&changed);
            if copy.walk(true).is_ok() {
                accepted += 1;
                // LMDB may find the map too large for the machine, or the state of the commit before.
                if let Ok(read) = copy.read() {
                    copy.rewrite(&read).unwrap();
                    assert!(read == contents || at % PAGE >= 144, "{at}");
                }
            }
        }
        assert!((1..500).contains(&accepted), "{accepted}");
    }

    #[test]
    fn a_shortened_file_is_refused_or_whole() {
        let (bytes, contents) = sample(8, 10);
        let mut noise = Noise(5);
        let cuts = (0..bytes.len()).step_by(PAGE).flat_map(|at| [at, at + 1 + noise.below(PAGE - 1)]);
        for length in cuts.collect::<Vec<_>>() {
            let copy = Copy::of(&bytes[..length]);
            if copy.walk(false).is_ok() {
                assert_eq!(copy.read().unwrap(), contents);
            }
            match copy.walk(true) {
                Ok(_) => copy.rewrite(&contents).unwrap(),
                Err(e) => assert!(matches!(e.kind(), Kind::Truncated | Kind::NotAStore), "{length}: {e}"),
            }
        }
    }

    /// A sample to change in one place.
    struct Damage {
        bytes: Vec<u8>,
        contents: Contents,
    }

    impl Damage {
        fn at(&self, page: u64, at: usize) -> usize {
            usize::try_from(page).unwrap() * PAGE + at
        }

        fn pointer(&self, page: u64, index: usize) -> usize {
            usize::from(u16_at(&self.bytes, self.at(page, 16 + 2 * index)).unwrap())
        }

        /// Offset of a node in the file.
        fn node(&self, page: u64, index: usize) -> usize {
            self.at(page, self.pointer(page, index))
        }

        fn changed(&self, offset: usize, new: &[u8]) -> Vec<u8> {
            let mut bytes = self.bytes.clone();
            bytes[offset..][..new.len()].copy_from_slice(new);
            bytes
        }

        /// Changes bytes, and sees the thorough walk refuse them.
        fn refused(&self, offset: usize, new: &[u8], message: &str) {
            let bytes = self.changed(offset, new);
            check_damaged(&bytes, &self.contents, message);
            let error = Copy::of(&bytes).walk(true).unwrap_err();
            assert!(error.to_string().contains(message), "`{error}` and not `{message}`");
        }

        /// Changes bytes, and sees both walks refuse them.
        fn refused_at_once(&self, offset: usize, new: &[u8], message: &str) {
            self.refused(offset, new, message);
            let error = Copy::of(&self.changed(offset, new)).walk(false).unwrap_err();
            assert!(error.to_string().contains(message), "`{error}` and not `{message}`");
        }
    }

    /// A sample with the numbers of a branch above leaves, of one of these leaves, and of the last leaf of the free list.
    fn damage() -> (Damage, u64, u64, u64) {
        let (bytes, contents) = sample(3, 24);
        let copy = Copy::of(&bytes);
        let file = copy.open().unwrap();
        let found = file.find(&file.meta.main, Role::Main, b"entries").unwrap();
        let Some((_, Node { content: Content::Tree(tree), .. })) = found else { panic!("{found:?}") };
        let child = |page: &Page, index: usize| match page.nodes[index].content {
            Content::Child(number) => number,
            _ => panic!("a leaf"),
        };
        let mut branch = tree.root.unwrap();
        for levels in (3..=tree.depth).rev() {
            branch = child(&file.page(branch, levels, Role::Named).unwrap(), 0);
        }
        let leaf = child(&file.page(branch, 2, Role::Named).unwrap(), 1);
        let mut free = file.meta.free_list.root.unwrap();
        for levels in (2..=file.meta.free_list.depth).rev() {
            free = child(&file.page(free, levels, Role::FreeList).unwrap(), 0);
        }
        (Damage { bytes, contents }, branch, leaf, free)
    }

    #[test]
    fn damage_of_a_page_is_named() {
        let (d, branch, leaf, _) = damage();
        let header = |at| d.at(leaf, at);
        d.refused_at_once(
            header(0),
            &(leaf ^ 1).to_le_bytes(),
            &format!("page {leaf}: says that it is page `{}`", leaf ^ 1),
        );
        d.refused_at_once(header(10), &[0x12], "has the flags `0x0012`, which no page of a tree has");
        d.refused_at_once(header(10), &[0x22], "of a database with several values a key");
        d.refused_at_once(header(12), &[0xf0, 0xff], "its free space from `65520`");
        d.refused_at_once(header(14), &[0, 0], "its free space from");
        d.refused_at_once(header(12), &[16, 0], "has `0` nodes, and needs `1`");
        d.refused_at_once(d.at(branch, 12), &[18, 0], "has `1` nodes, and needs `2`");
        let pointers = [1, 0].map(|index| u16::try_from(d.pointer(leaf, index)).unwrap().to_le_bytes());
        d.refused_at_once(header(16), &pointers.concat(), "its keys are not in ascending order");
        d.refused_at_once(header(16), &pointers[0], "its nodes overlap, or leave gaps");
        d.refused_at_once(header(16), &[0xfe, 0xff], "node `0`: `2` bytes at `65536` lie beyond its end");
        d.refused_at_once(d.node(leaf, 0) + 6, &[88, 2], "node `0`: a key of `600` bytes");
        d.refused_at_once(d.node(leaf, 0) + 6, &[0, 0], "node `0`: a key of `0` bytes");
        d.refused_at_once(d.node(leaf, 0) + 4, &[8], "node `0`: has the flags `0x0008`, which no value has");
        d.refused_at_once(d.node(leaf, 0) + 4, &[2], "node `0`: has the flags `0x0002`, which no value has");
    }

    #[test]
    fn damage_between_pages_is_named() {
        let (d, branch, _, free) = damage();
        let (second, third) = (d.node(branch, 1), d.node(branch, 2));
        d.refused_at_once(second, &d.bytes[d.node(branch, 0)..][..6], "is used twice");
        d.refused_at_once(second, &d.bytes[third..third + 6], "has a key that its parent does not lead to");
        let separator = usize::from(u16_at(&d.bytes, second + 6).unwrap());
        d.refused_at_once(second + 7 + separator, b"~", "has a key that its parent does not lead to");
        d.refused_at_once(second, &branch.to_le_bytes()[..6], "is not at the depth that its tree has");
        d.refused_at_once(second, &[1, 0], "page 1: is not among the pages from `2`");
        let numbers = &structure(&d.bytes)[3];
        let value = |index: usize| u64_at(&d.bytes, numbers[8 * index]).unwrap();
        d.refused_at_once(numbers[0], &value(1).to_le_bytes(), "is used twice");
        d.refused_at_once(numbers[0], &[0, 0, 0, 1], "is not among the pages from `2`");
        d.refused(d.at(value(0), 12), &[0], "does not begin a value");
        d.refused(d.at(value(0), 0), &(value(0) ^ 1).to_le_bytes(), "does not begin a value");
        d.refused(d.at(value(0), 10), &[2], "does not begin a value");
        let record = d.node(free, 0);
        d.refused(record + 8, &[0; 8], "has free pages of transaction `0`, which was never");
        d.refused(record + 16, &[255, 255], "`65535` free pages in a value of");
        d.refused(record + 24, &[1, 0, 0, 0], "free page `1` is out of order or range");
        d.refused(record + 24, &[0, 0, 0, 1], "free page `16777216` is out of order or range");
        let last = record + 16 + 8 * usize::try_from(u64_at(&d.bytes, record + 16).unwrap()).unwrap();
        let used = structure(&d.bytes)[0][0] / PAGE;
        assert!((used as u64) < u64_at(&d.bytes, last).unwrap());
        d.refused(last, &(used as u64).to_le_bytes(), &format!("page {used}: is used twice"));
    }

    #[test]
    fn damage_of_a_meta_page_is_named() {
        let (d, ..) = damage();
        let txnid = Copy::of(&d.bytes).open().unwrap().txnid();
        let at = |at| d.at(txnid % 2, at);
        let plus = |offset: usize, n: u64| (u64_at(&d.bytes, offset).unwrap() + n).to_le_bytes();
        d.refused_at_once(at(144), &plus(at(144), 1), "is never written here");
        d.refused_at_once(at(144), &plus(at(144), 2), "contradict each other");
        d.refused_at_once(at(136), &[0xff; 8], "a root lies beyond the last page");
        d.refused_at_once(at(136), &[2, 0], "a root lies beyond the last page, `2`");
        d.refused_at_once(at(136), &[0, 0, 0, 1], "that were committed");
        d.refused_at_once(at(10), &[0x18], "is no meta page");
        d.refused_at_once(d.at(1, 20), &[2], "page 1: has another format than the first page");
        d.refused_at_once(40, &[0, 2], "page 0: pages of `512` bytes");
        d.refused_at_once(40, &[0, 0x30], "page 0: pages of `12288` bytes");
        d.refused_at_once(at(44), &[0x0c], "the free list has the flags `0x000c`");
        d.refused_at_once(at(92), &[4], "a database has the flags `0x0004`");
        d.refused_at_once(at(94), &[33], "a tree has the impossible depth `33`");
        d.refused_at_once(at(94), &[0], "a tree has the impossible depth `0`");
        d.refused_at_once(at(128), &[0xff; 8], "with pages or entries has no root");
        d.refused_at_once(at(94), &[9], "is not at the depth that its tree has");
        for count in [96, 104, 120] {
            d.refused_at_once(at(count), &plus(at(count), 1), "and should have");
        }
        d.refused(at(112), &plus(at(112), 1), "and should have");
    }

    #[test]
    fn other_files_are_named() {
        let refused = |bytes: &[u8], kind: Kind, message: &str| {
            let error = Copy::of(bytes).open().unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(message), "{error}");
        };
        let (bytes, _) = sample(1, 1);
        let mut newer = vec![0; 2 * PAGE];
        newer[24..32].copy_from_slice(&[0xde, 0xc0, 0xef, 0xbe, 3, 0, 0, 0]);
        refused(&newer, Kind::UnsupportedVersion, "is in the format of LMDB 1.0, which this build, made for LMDB 0.9");
        let mut unknown = bytes.clone();
        unknown[20..22].copy_from_slice(&999_u16.to_le_bytes());
        refused(&unknown, Kind::UnsupportedVersion, "is an LMDB file of version `999`; this build reads `1`");
        refused(b"", Kind::NotAStore, "is not an LMDB file");
        refused("a page of text\n".repeat(900).as_bytes(), Kind::NotAStore, "is not an LMDB file");
        refused(&bytes[..100], Kind::Truncated, "ends after `100` bytes, within its meta pages");
        let folder = TempDir::new().unwrap();
        let error = DataFile::open(folder.path()).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("is not a regular file")), (Kind::UnsafePath, true));
        let error = DataFile::open(&folder.path().join("data.mdb")).unwrap_err();
        assert_eq!(error.kind(), Kind::MissingFile);
    }
}
