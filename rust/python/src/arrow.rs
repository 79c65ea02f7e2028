//! The metadata table as an Arrow stream, through the C data interface.

use std::sync::Arc;

use actstore::columns::{Column, ColumnType, values};
use actstore::store::Store;
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, NullArray, RecordBatch, RecordBatchReader, StringArray,
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use serde_json::Value;

/// Entries in a record batch.
const BATCH_ENTRIES: usize = 8192;

/// Batches of the metadata of the entries there were when the stream was made.
struct Batches {
    store: Arc<Store>,
    columns: Vec<Column>,
    schema: SchemaRef,
    keys: std::vec::IntoIter<Arc<str>>,
}

pub(crate) fn stream(py: Python<'_>, store: Arc<Store>, columns: Vec<Column>) -> PyResult<Bound<'_, PyCapsule>> {
    let keys = py
        .detach(|| store.reading().and_then(|backend| backend.keys()))
        .map_err(crate::errors::Failure::from)?
        .into_iter();
    let fields: Vec<_> =
        columns.iter().map(|column| Field::new(&column.name, data_type(column.column_type), true)).collect();
    let batches = Batches { store, columns, schema: Arc::new(Schema::new(fields)), keys };
    let stream = FFI_ArrowArrayStream::new(Box::new(batches));
    PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
}

fn data_type(column_type: ColumnType) -> DataType {
    match column_type {
        ColumnType::Null => DataType::Null,
        ColumnType::Bool => DataType::Boolean,
        ColumnType::Int => DataType::Int64,
        ColumnType::Float => DataType::Float64,
        ColumnType::Text | ColumnType::Json => DataType::Utf8,
    }
}

fn array(column_type: ColumnType, values: &[Value]) -> ArrayRef {
    match column_type {
        ColumnType::Null => Arc::new(NullArray::new(values.len())),
        ColumnType::Bool => Arc::new(values.iter().map(Value::as_bool).collect::<BooleanArray>()),
        ColumnType::Int => Arc::new(values.iter().map(Value::as_i64).collect::<Int64Array>()),
        ColumnType::Float => Arc::new(values.iter().map(Value::as_f64).collect::<Float64Array>()),
        ColumnType::Text | ColumnType::Json => Arc::new(values.iter().map(Value::as_str).collect::<StringArray>()),
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let keys: Vec<_> = self.keys.by_ref().take(BATCH_ENTRIES).collect();
        if keys.is_empty() {
            return None;
        }
        let failed = |error: actstore::error::Error| ArrowError::ExternalError(Box::new(error));
        Some(values(&self.store, &keys, &self.columns).map_err(failed).and_then(|values| {
            let arrays = self.columns.iter().zip(&values).map(|(column, values)| array(column.column_type, values));
            RecordBatch::try_new(self.schema.clone(), arrays.collect())
        }))
    }
}

impl RecordBatchReader for Batches {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}
