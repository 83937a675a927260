//! What the targets share, and the valid inputs that they begin with.

use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use essaim_common::session;
use essaim_common::sources::postgres::types::Kind;
use std::sync::Arc;

/// Data in two pieces, as networks deliver it; the first two bytes say where the cut is.
pub fn cut(data: &[u8]) -> (&[u8], &[u8]) {
    match data {
        [high, low, rest @ ..] => {
            let at = usize::from(u16::from_be_bytes([*high, *low])) % (rest.len() + 1);
            rest.split_at(at)
        }
        short => (short, &[]),
    }
}

/// Columns of all kinds.
pub fn columns() -> Schema {
    let field = |name: &str, kind| Field::new(name, kind, true);
    let inner = Fields::from(vec![
        field("n", DataType::Int64),
        field("s", DataType::Utf8View),
    ]);
    Schema::new(vec![
        field("id", DataType::Int64),
        field("text", DataType::Utf8View),
        field("price", DataType::Float64),
        field("amount", DataType::Decimal128(20, 4)),
        field("ok", DataType::Boolean),
        field("at", DataType::Timestamp(TimeUnit::Nanosecond, None)),
        field("day", DataType::Date32),
        field("who", DataType::Struct(inner)),
        Field::new_list("tags", field("item", DataType::Utf8View), true),
    ])
}

/// The columns of a COPY.
pub fn copied_columns() -> Vec<(String, Kind)> {
    let list = DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true)));
    let kinds = [
        DataType::Boolean,
        DataType::Int64,
        DataType::Float64,
        DataType::Decimal128(38, 10),
        DataType::Utf8View,
        DataType::Binary,
        DataType::Date32,
        DataType::Timestamp(TimeUnit::Microsecond, None),
        list,
    ];
    let columns = kinds
        .iter()
        .map(|kind| ("c".to_owned(), Kind::for_arrow(kind)));
    columns.collect()
}

/// A session as a worker has it.
pub fn session() -> SessionContext {
    let builder = SessionStateBuilder::new().with_config(session::config(1));
    SessionContext::new_with_state(session::with_essaim(builder).build())
}
