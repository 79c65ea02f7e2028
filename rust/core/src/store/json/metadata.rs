//! `metadata.json`: one line an entry, for people and for programs that know no more than this file. It is made from
//! the files of the entries, and nothing here is read but the hash that tells whether it is of these.

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::read::{Summary, summary};
use super::write::Out;
use super::{ACTIVATIONS, Located, file_name};
use crate::entry::{Document, hex};
use crate::error::{Error, Kind, Result};
use crate::files::{Disk, ReadFile, replace_with};
use crate::format::size;
use crate::pool::Pool;

const METADATA: &str = "metadata.json";
const END: &str = "\n}}\n";
/// Documents held in memory at a time.
const AT_ONCE: usize = 32;

/// Writes the list, unless it is there and whole and of these entries.
pub(super) fn refresh(disk: &dyn Disk, root: &Path, entries: &[(Arc<str>, Located)], pool: &Pool) -> Result<()> {
    let (path, begin) = (root.join(METADATA), beginning(entries));
    if is_current(&path, &begin).unwrap_or(false) {
        return Ok(());
    }
    replace_with(disk, &path, |file| {
        let mut out = Out::to(file);
        out.push(&begin)?;
        let mut separator = "\n";
        for some in entries.chunks(AT_ONCE) {
            let lines: Vec<_> = pool.install(|| some.par_iter().map(|(key, _)| line(root, key)).collect())?;
            for line in lines {
                match line {
                    Ok(line) => [separator, &line].into_iter().try_for_each(|text| out.push(text))?,
                    // Removed by hand: the store does not have it when it is next opened.
                    Err(error) if error.kind() == Kind::MissingFile => continue,
                    Err(error) => return Err(error),
                }
                separator = ",\n";
            }
        }
        out.push(END)?;
        out.finish()
    })
}

/// Up to the first entry.
fn beginning(entries: &[(Arc<str>, Located)]) -> String {
    let mut state = blake3::Hasher::new();
    for (key, located) in entries {
        state.update(&located.number.to_le_bytes());
        state.update(&located.content_id);
        state.update(&located.created.to_le_bytes());
        state.update(&(key.len() as u64).to_le_bytes());
        state.update(key.as_bytes());
    }
    let config = json!({
        "target_layers": "all", "sequence_mode": "all", "version": "actstore-0",
        "state": hex(state.finalize().as_bytes()),
    });
    format!("{{\"logger_config\": {config},\n\"entries\": {{")
}

/// No line but the last is like the end, so that no part of the list passes for all of it.
fn is_current(path: &Path, begin: &str) -> Result<bool> {
    let file = ReadFile::open(path)?;
    let length = file.length()?;
    if length < (begin.len() + END.len()) as u64 {
        return Ok(false);
    }
    let (mut first, mut last) = (vec![0; begin.len()], [0; END.len()]);
    file.read_at(0, &mut first)?;
    file.read_at(length - size(last.len() as u64)? as u64, &mut last)?;
    Ok(first == begin.as_bytes() && last == END.as_bytes())
}

fn line(root: &Path, key: &str) -> Result<String> {
    let name = file_name(key);
    let path = root.join(ACTIVATIONS).join(&name);
    let unlisted = |e: Error| e.within(format!("`{METADATA}` is not made anew: entry `{key}` in `{}`", path.display()));
    let Summary { head, has_activations, .. } = summary(&path).map_err(unlisted)?;
    let mut document = head.document;
    let model = document.metadata.get("model").filter(|model| model.is_string()).cloned();
    if model.is_some() {
        document.metadata.shift_remove("model");
    }
    let tokens = head.token_ids.map(|ids| ids.len() as u64);
    let record = json!({
        "prompt": document.prompt, "response": document.response, "model": model,
        "input_length": document.prompt_length, "timestamp": document.created, "has_activations": has_activations,
        "activation_file": has_activations.then(|| format!("{ACTIVATIONS}/{name}")),
        "logging_config": {"target_layers": "all", "sequence_mode": sequence_mode(&document, tokens)},
        "metadata": document.metadata,
    });
    Ok(format!("{}: {record}", Value::from(key)))
}

/// Which part of the sequence the stored positions are.
fn sequence_mode(document: &Document, tokens: Option<u64>) -> &'static str {
    let (Some(positions), Some(prompt)) = (&document.positions, document.prompt_length) else { return "all" };
    let (first, stop) = (positions.first().map(|[start, _]| *start), positions.last().map(|[_, stop]| *stop));
    match (first, stop) {
        (Some(first), _) if first >= prompt => "response",
        (_, Some(stop)) if stop <= prompt && tokens.is_none_or(|tokens| tokens > prompt) => "prompt",
        _ => "all",
    }
}
