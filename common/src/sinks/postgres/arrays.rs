//! A few rows as the parameters of the statement that inserts them, one array for each column.

use super::encode::Column;
use crate::error::{Error, Result};
use crate::sources::postgres::client::quote;
use crate::sources::postgres::types::{Kind, NAME, TEXT};
use arrow::array::RecordBatch;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgTypeInfo, Postgres};
use sqlx::{Arguments, Type};

/// The rows, in the binary form of `array_recv` in PostgreSQL's arrayfuncs.c.
pub struct Arrays {
    columns: Vec<Array>,
}

/// The values of one column.
struct Array {
    /// The number of the array's type.
    oid: u32,
    value: Vec<u8>,
}

/// The last byte of the flag that says whether there are nulls; the number of dimensions stands before it.
const NULLS_AT: usize = 7;

impl Arrays {
    /// Encodes the rows of all `batches`; `None` if they take more than `limit` bytes, or if there is a column whose
    /// values cannot be an array's elements: see [`travels`].
    ///
    /// # Errors
    /// A value that does not fit its column, named.
    pub fn encode(
        batches: &[RecordBatch],
        targets: &[(String, Kind)],
        limit: usize,
    ) -> Result<Option<Self>> {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let Ok(rows) = i32::try_from(rows) else {
            return Ok(None);
        };
        let mut left = limit;
        let mut columns = Vec::with_capacity(targets.len());
        for (at, (name, kind)) in targets.iter().enumerate() {
            let Some((item, oid)) = types(kind) else {
                return Ok(None);
            };
            let mut value = Vec::new();
            // Dimensions, no nulls, the element's type; length and lower bound of the one dimension.
            for number in [1, 0, item, rows, 1] {
                value.extend_from_slice(&number.to_be_bytes());
            }
            for batch in batches {
                let named = |e: Error| e.context(format!("column {name}"));
                let column = Column::new(batch.column(at), kind).map_err(named)?;
                if column.has_nulls() {
                    value[NULLS_AT] = 1;
                }
                for row in 0..batch.num_rows() {
                    column.write(row, &mut value).map_err(named)?;
                    if value.len() > left {
                        return Ok(None);
                    }
                }
            }
            left -= value.len();
            columns.push(Array { oid, value });
        }
        Ok(Some(Self { columns }))
    }

    /// The parameters of a statement with [`unnest`].
    ///
    /// # Errors
    /// More than 2 GiB.
    pub fn arguments(&self) -> Result<PgArguments> {
        let mut arguments = PgArguments::default();
        for column in &self.columns {
            arguments
                .add(column)
                .map_err(|e| Error::internal(format!("the rows of an epoch: {e}")))?;
        }
        Ok(arguments)
    }
}

/// The rows that arrive as parameters, in their order, as they stand in a FROM.
pub fn unnest(columns: &[(String, Kind)]) -> String {
    let arrays: Vec<String> = (1..=columns.len())
        .map(|number| format!("pg_catalog.unnest(${number})"))
        .collect();
    let names: Vec<String> = columns.iter().map(|(name, _)| quote(name)).collect();
    format!(
        "ROWS FROM ({}) AS staged ({})",
        arrays.join(", "),
        names.join(", ")
    )
}

/// Whether the values of a column can be an array's elements. Arrays cannot: `unnest` would take them apart too.
pub fn travels(kind: &Kind) -> bool {
    types(kind).is_some()
}

/// The numbers, in `pg_type.dat`, of an element's type and of the array's.
fn types(kind: &Kind) -> Option<(i32, u32)> {
    Some(match kind {
        Kind::Bool => (16, 1000),
        Kind::Bytea => (17, 1001),
        Kind::Text { oid: NAME, .. } => (19, 1003),
        Kind::Int8 => (20, 1016),
        Kind::Int2 => (21, 1005),
        Kind::Int4 => (23, 1007),
        // The server makes a varchar(n) of it by assignment, an enum and any other type by a cast.
        Kind::Text { .. } | Kind::Other { .. } => (25, 1009),
        Kind::Oid => (26, 1028),
        Kind::Json => (114, 199),
        Kind::Float4 => (700, 1021),
        Kind::Float8 => (701, 1022),
        Kind::Date => (1082, 1182),
        Kind::Time => (1083, 1183),
        Kind::Timestamp => (1114, 1115),
        Kind::Timestamptz => (1184, 1185),
        Kind::Interval => (1186, 1187),
        Kind::Numeric { .. } => (1700, 1231),
        Kind::Uuid => (2950, 2951),
        Kind::Jsonb => (3802, 3807),
        Kind::Array { .. } => return None,
    })
}

impl Type<Postgres> for Array {
    /// Never asked: each value [`Encode::produces`] its own.
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(TEXT))
    }
}

impl Encode<'_, Postgres> for Array {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.value);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(Oid(self.oid)))
    }

    fn size_hint(&self) -> usize {
        self.value.len()
    }
}
