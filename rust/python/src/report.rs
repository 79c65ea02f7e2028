//! Reports of the core as JSON.

use actstore::inspect::{Info, PointInfo, Report};
use serde_json::{Value, json};

pub(crate) fn info(info: &Info) -> String {
    let points: Vec<_> =
        info.points.iter().map(|((point, dtype), sums)| point_json(point.as_str(), dtype.name(), sums)).collect();
    let sum = |of: fn(&PointInfo) -> u64| info.points.values().map(of).sum::<u64>();
    json!({
        "entries": info.entries, "damaged": info.damaged, "tokens": info.tokens, "raw_bytes": sum(|p| p.raw_bytes),
        "stored_bytes": sum(|p| p.stored_bytes), "file_bytes": info.file_bytes, "points": points,
    })
    .to_string()
}

fn point_json(point: &str, dtype: &str, sums: &PointInfo) -> Value {
    json!({
        "point": point, "dtype": dtype, "entries": sums.entries, "rows": sums.rows, "raw_bytes": sums.raw_bytes,
        "stored_bytes": sums.stored_bytes, "nonfinite": sums.nonfinite, "saturated": sums.saturated,
        "encodings": sums.encodings,
    })
}

pub(crate) fn verification(report: &Report) -> String {
    let damage: Vec<_> = report
        .damage
        .iter()
        .map(|one| json!({"key": one.key.as_deref(), "kind": one.error.kind().as_str(), "message": one.error.to_string()}))
        .collect();
    json!({"entries": report.entries, "frames": report.frames, "bytes": report.bytes, "damage": damage}).to_string()
}
