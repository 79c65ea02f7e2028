//! Checking every byte of a shard.

use super::append::hash_file;
use super::scan::{self, View, check_payload, named};
use super::shard::Shard;
use crate::error::{Error, Kind, Result};
use crate::format::Extent;

/// Every record of a shard: header, payload, place; and the whole file, if it is sealed.
pub(super) fn verify_shard(shard: &Shard, extent: Option<&Extent>) -> Result<Vec<Error>> {
    let mut damage = Vec::new();
    let end = match extent {
        Some(Extent { length, seal: Some(_), .. }) => *length,
        _ => scan::scan(&shard.file, shard.place, 0)?.end,
    };
    let view = View::of(&shard.file, shard.place)?;
    let mut at = 0;
    while at < end {
        let Some(found) = view.header_at(at)? else {
            let message = format!("{}: a record header is damaged", named(&shard.file, at));
            damage.push(Error::new(Kind::Checksum, message));
            match view.next_record(at)? {
                Some(next) => at = next.offset,
                None => break,
            }
            continue;
        };
        damage.extend(check_payload(&shard.file, &found).err());
        at = found.end();
    }
    if let (Some(Extent { length, seal: Some(sealed), .. }), true) = (extent, damage.is_empty()) {
        let mut hasher = blake3::Hasher::new();
        hash_file(shard, *length, &mut hasher)?;
        if hasher.finalize().as_bytes() != &sealed.blake3 {
            let message = format!("`{}` is not the file that was sealed", shard.file.path().display());
            damage.push(Error::new(Kind::Checksum, message));
        }
    }
    Ok(damage)
}
