//! LMDB environments made for other programs: values by key in the database without a name, nothing of ours beside them.

use std::path::Path;

use heed::CommitOrAbort;
use heed::types::Bytes;

use super::environment::open_env;
use super::{descriptors, failure};
use crate::error::Result;

/// A leaf and the last page of a value, at most of 64 KiB on any machine, or a share of a branch, and both anew.
const PAGES_BESIDE: u64 = 8192;
/// What an environment has before its first value, and what a transaction writes anew of the free list.
const ALWAYS: u64 = 1 << 20;

/// Puts values into the environment of LMDB 0.9 in a directory, all in one transaction, and durably. The data file must
/// exist, and may be empty; a value that is there under the same key is replaced.
///
/// Errors: `already_open` and `locked` where something else has the environment open, `storage_full`, `storage_io`.
pub fn put_exported(root: &Path, values: &[(&[u8], &[u8])]) -> Result<()> {
    failure::check_version()?;
    descriptors::refuse_others(root)?;
    let room = values.iter().map(|(key, value)| (key.len() + value.len()) as u64 + PAGES_BESIDE).sum::<u64>() + ALWAYS;
    let (env, _lock, read_only) = open_env(root, room)?;
    read_only.map_or(Ok(()), Err)?;
    let put = || {
        let txn = env.write_txn()?;
        env.create_databases_and_commit::<_, _, (), heed::Error>(txn, |opener, txn| {
            let database = opener.create_database::<Bytes, Bytes>(txn, None)?;
            for (key, value) in values {
                database.put(txn, key, value)?;
            }
            Ok(CommitOrAbort::Commit(database))
        })
    };
    put().map(drop).map_err(|error| failure::of_commit(error, root, room))
}
