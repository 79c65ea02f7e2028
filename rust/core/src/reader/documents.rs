//! The documents of all entries, without their activations.

use std::sync::Arc;
use std::vec;

use rayon::prelude::*;

use super::ahead::Parts;
use crate::error::Result;
use crate::store::Store;

/// Documents of a part, at most, and the bytes with which a part ends.
const PART_DOCUMENTS: usize = 512;
const PART_BYTES: usize = 4 << 20;
/// Documents that are read together: they are all held, however large they are.
const TOGETHER: usize = 32;

/// The documents of the entries that there were when this was made, as [`Document::to_public_json`] shows them.
///
/// [`Document::to_public_json`]: crate::entry::Document::to_public_json
pub struct Documents {
    store: Arc<Store>,
    keys: vec::IntoIter<Arc<str>>,
}

impl Documents {
    /// Reads nothing but the keys.
    pub fn new(store: &Arc<Store>) -> Result<Self> {
        let keys = store.reading()?.keys()?.into_iter();
        Ok(Self { store: store.clone(), keys })
    }
}

/// Entries deleted meanwhile are left out.
impl Parts for Documents {
    type Part = Vec<String>;

    fn next_part(&mut self) -> Result<Option<Vec<String>>> {
        let backend = self.store.reading()?;
        let (mut part, mut bytes) = (Vec::new(), 0);
        while part.len() < PART_DOCUMENTS && bytes < PART_BYTES {
            let keys: Vec<_> = self.keys.by_ref().take(TOGETHER).collect();
            if keys.is_empty() {
                break;
            }
            let read = |key: Arc<str>| backend.public_document(&key).transpose();
            let found: Vec<_> = self.store.pool().install(|| keys.into_par_iter().filter_map(read).collect())?;
            for document in found {
                part.push(document?);
                bytes += part.last().map_or(0, String::len);
            }
        }
        Ok(Some(part).filter(|part| !part.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Operation;
    use crate::store::contract::{bare_entry, settings};

    /// Lengths of the parts of a store of 1000 documents with prompts of so many bytes.
    fn parts(prompt_bytes: usize) -> Vec<usize> {
        let store = Arc::new(Store::create(None, "memory", settings("memory", "error"), 1 << 20).unwrap());
        let put = |n| {
            let json = format!(r#"{{"key":"k{n}","key_recipe":"user","prompt":"{}"}}"#, "x".repeat(prompt_bytes));
            Operation::Put(Box::new(bare_entry(&json)))
        };
        store.writing().unwrap().commit((0..1000).map(put).collect()).unwrap();
        let mut documents = Documents::new(&store).unwrap();
        std::iter::from_fn(|| documents.next_part().unwrap().map(|part| part.len())).collect()
    }

    #[test]
    fn a_part_has_so_many_documents_or_so_many_bytes() {
        assert_eq!(parts(10), [512, 488]);
        let large = parts(100 << 10);
        assert_eq!(large.iter().sum::<usize>(), 1000);
        assert!(large.iter().all(|&length| length <= 64), "{large:?}");
    }
}
