//! The metadata of all entries as typed columns, so that tables of a million entries need no activation.

use std::sync::Arc;

use serde_json::Value;

use crate::entry::Document;
use crate::error::Result;
use crate::store::Store;

/// Type of a column. A field whose values do not agree, or are lists or objects, is kept as its JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// No value seen.
    Null,
    /// Booleans.
    Bool,
    /// Integers of 64 bits.
    Int,
    /// Numbers.
    Float,
    /// Strings.
    Text,
    /// JSON text of anything else.
    Json,
}

impl ColumnType {
    fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Bool,
            Value::Number(n) if n.as_i64().is_some() => Self::Int,
            // An integer beyond 64 bits would lose digits as a float.
            Value::Number(n) if n.to_string().contains(['.', 'e', 'E']) => Self::Float,
            Value::String(_) => Self::Text,
            _ => Self::Json,
        }
    }

    /// The type that holds both.
    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Null, one) | (one, Self::Null) => one,
            (Self::Int, Self::Float) | (Self::Float, Self::Int) => Self::Float,
            (one, other) if one == other => one,
            _ => Self::Json,
        }
    }
}

/// A column's name and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Unique within the table.
    pub name: String,
    /// Type of its values.
    pub column_type: ColumnType,
    /// The user's field; `None` for the entry's own.
    field: Option<String>,
}

/// The entry's own fields, before the user's.
const OWN: &[(&str, ColumnType)] = &[
    ("key", ColumnType::Text),
    ("key_recipe", ColumnType::Text),
    ("prompt", ColumnType::Text),
    ("response", ColumnType::Text),
    ("prompt_sha256", ColumnType::Text),
    ("prompt_length", ColumnType::Int),
    ("positions", ColumnType::Json),
    ("created", ColumnType::Float),
];

/// The columns of a store. A user's field whose name is taken, by one of the entry's own, is `metadata.<name>`.
pub fn columns(store: &Store) -> Result<Vec<Column>> {
    let own = |&(name, column_type): &(&str, ColumnType)| Column { name: name.to_owned(), column_type, field: None };
    let mut columns: Vec<_> = OWN.iter().map(own).collect();
    let mut places = std::collections::HashMap::new();
    for key in store.reading()?.keys()? {
        for (field, value) in document(store, &key)?.map(|document| document.metadata).unwrap_or_default() {
            let found = ColumnType::of(&value);
            let place = *places.entry(field.clone()).or_insert_with(|| {
                let mut name = field.clone();
                while columns.iter().any(|column| column.name == name) {
                    name = format!("metadata.{name}");
                }
                columns.push(Column { name, column_type: ColumnType::Null, field: Some(field) });
                columns.len() - 1
            });
            if let Some(column) = columns.get_mut(place) {
                column.column_type = column.column_type.join(found);
            }
        }
    }
    Ok(columns)
}

/// `None` where the entry was deleted since its key was listed.
fn document(store: &Store, key: &Arc<str>) -> Result<Option<Document>> {
    let entry = store.reading()?.entry(key)?;
    Ok(entry.map(|entry| entry.header().document.clone()))
}

/// The values of some entries, column by column; each value fits its column's type or is null.
pub fn values(store: &Store, keys: &[Arc<str>], columns: &[Column]) -> Result<Vec<Vec<Value>>> {
    let mut values: Vec<Vec<Value>> = columns.iter().map(|_| Vec::with_capacity(keys.len())).collect();
    for key in keys {
        let Some(mut document) = document(store, key)? else { continue };
        let mut own = own_values(&document);
        for (column, values) in columns.iter().zip(&mut values) {
            let value = match &column.field {
                None => own.remove(&column.name),
                Some(field) => document.metadata.remove(field),
            };
            values.push(fitted(value.unwrap_or(Value::Null), column.column_type));
        }
    }
    Ok(values)
}

fn own_values(document: &Document) -> serde_json::Map<String, Value> {
    let own = serde_json::json!({
        "key": document.key, "key_recipe": document.key_recipe, "prompt": document.prompt, "response": document.response,
        "prompt_sha256": document.prompt_sha256(), "prompt_length": document.prompt_length,
        "positions": document.positions, "created": document.created,
    });
    match own {
        Value::Object(own) => own,
        _ => serde_json::Map::new(),
    }
}

fn fitted(value: Value, column_type: ColumnType) -> Value {
    match (&value, column_type) {
        (Value::Null, _) => Value::Null,
        (_, ColumnType::Json) => Value::String(value.to_string()),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_join_to_one_that_holds_both() {
        let of = |json: &str| ColumnType::of(&serde_json::from_str(json).unwrap());
        for (left, right, joined) in [
            ("1", "null", ColumnType::Int),
            ("1", "2.5", ColumnType::Float),
            ("1", "\"a\"", ColumnType::Json),
            ("true", "false", ColumnType::Bool),
            ("[1]", "[2]", ColumnType::Json),
            ("18446744073709551615", "1", ColumnType::Json),
            ("123456789012345678901234567890", "1", ColumnType::Json),
        ] {
            assert_eq!(of(left).join(of(right)), joined, "{left} {right}");
            assert_eq!(of(right).join(of(left)), joined, "{right} {left}");
        }
    }
}
