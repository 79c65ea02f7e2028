//! From store to store.

use actstore::hook_point::HookPoint;
use actstore::manifest::OnConflict;
use actstore::migrate::{Difference, Plan, Progress, Summary};
use pyo3::prelude::*;
use serde_json::json;

use crate::errors::Outcome;
use crate::progress::watched;
use crate::store::PyStore;

fn plan(keys: Option<Vec<String>>, points: Option<Vec<String>>, on_conflict: &str) -> Outcome<Plan> {
    let points = points.map(|points| points.iter().map(|point| HookPoint::new(point)).collect());
    Ok(Plan { keys, points: points.transpose()?, on_conflict: OnConflict::parse(on_conflict)? })
}

fn counts(progress: &Progress) -> (u64, u64, u64) {
    (progress.entries, progress.total, progress.raw_bytes)
}

#[pyfunction]
#[pyo3(signature = (source, target, keys, points, on_conflict, progress=None))]
pub(crate) fn migrate(
    py: Python<'_>,
    source: &PyStore,
    target: &PyStore,
    keys: Option<Vec<String>>,
    points: Option<Vec<String>>,
    on_conflict: &str,
    progress: Option<Py<PyAny>>,
) -> Outcome<String> {
    let plan = plan(keys, points, on_conflict)?;
    let (summary, file_bytes) = watched(py, progress, |step| {
        let done = actstore::migrate::migrate(&source.store, &target.store, &plan, |done| step(counts(done)))?;
        Ok((done, target.store.reading()?.file_bytes()?))
    })?;
    Ok(report(&summary, file_bytes))
}

fn report(summary: &Summary, file_bytes: u64) -> String {
    let Summary { entries, migrated, skipped, conflicts, copied, raw_bytes, stored_bytes } = summary;
    json!({
        "entries": entries, "migrated": migrated, "skipped": skipped, "conflicts": conflicts, "copied": copied,
        "encoded": migrated - copied, "raw_bytes": raw_bytes, "stored_bytes": stored_bytes, "file_bytes": file_bytes,
    })
    .to_string()
}

#[pyfunction]
#[pyo3(signature = (source, target, keys, points, on_conflict, progress=None))]
pub(crate) fn compare(
    py: Python<'_>,
    source: &PyStore,
    target: &PyStore,
    keys: Option<Vec<String>>,
    points: Option<Vec<String>>,
    on_conflict: &str,
    progress: Option<Py<PyAny>>,
) -> Outcome<String> {
    let plan = plan(keys, points, on_conflict)?;
    let found = watched(py, progress, |step| {
        actstore::migrate::compare(&source.store, &target.store, &plan, |done| step(counts(done)))
    })?;
    let one = |found: &Difference| json!({"key": &*found.key, "message": found.message});
    Ok(found.iter().map(one).collect::<serde_json::Value>().to_string())
}
