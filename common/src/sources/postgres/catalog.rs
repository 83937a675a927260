//! What the server knows of a table: its columns, what kind of relation it is, its leaves and their sizes.

use super::client::{Client, quote};
use super::types::{Comparison, Kind, UNBOUNDED_NUMERIC};
use crate::error::{Error, Result};
use crate::options::meant;
use sqlx::Row;
use sqlx::postgres::PgRow;

/// A table's name as the job gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    /// `None`: found by the login's search path.
    pub schema: Option<String>,
    pub table: String,
}

impl TableName {
    /// Reads `table` or `schema.table`; names are taken as they stand, one with a dot in double quotes.
    ///
    /// # Errors
    /// A text of another form.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!(
                "option table '{text}': write 'table' or 'schema.table', a name with a dot in double quotes"
            ))
        };
        let mut parts = vec![String::new()];
        let mut quoted = false;
        for c in text.trim().chars() {
            match c {
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(String::new()),
                other => parts.last_mut().ok_or_else(wrong)?.push(other),
            }
        }
        if quoted || parts.iter().any(String::is_empty) {
            return Err(wrong());
        }
        match <[String; 2]>::try_from(parts) {
            Ok([schema, table]) => Ok(Self {
                schema: Some(schema),
                table,
            }),
            Err(mut one) => match (one.pop(), one.pop()) {
                (Some(table), None) => Ok(Self {
                    schema: None,
                    table,
                }),
                _ => Err(wrong()),
            },
        }
    }

    /// For SQL.
    pub fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quote(schema), quote(&self.table)),
            None => quote(&self.table),
        }
    }
}

/// One column of a table.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub kind: Kind,
    pub not_null: bool,
    /// Computed by the server: can be read, not written.
    pub generated: bool,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub struct Relation {
    pub oid: i64,
    pub schema: String,
    pub table: String,
    pub shape: Shape,
    /// Whether LOCK TABLE takes it: a table, partitioned or not.
    pub lockable: bool,
    /// Row-level security applies: only the table itself may be asked, not its leaves.
    pub row_security: bool,
    pub columns: Vec<Column>,
}

/// How a relation can be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A plain table or a materialized view: has blocks.
    Heap,
    /// A partitioned table: has leaves.
    Partitioned,
    /// A view or a foreign table: only its keys.
    Opaque,
}

impl Relation {
    /// For SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }

    /// The column of a name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// A relation that has rows of its own.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub schema: String,
    pub table: String,
    pub has_blocks: bool,
    pub blocks: i64,
    /// The planner's guess, if it has one.
    pub rows: Option<u64>,
}

fn value<'r, T>(row: &'r PgRow, index: usize) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(index)
        .map_err(|e| Error::internal(format!("PostgreSQL's catalog: {e}")))
}

/// Looks a table up; `None` if there is none of that name.
///
/// # Errors
/// Something that has no rows, e.g. an index; the server's.
pub async fn relation(client: &mut Client, name: &TableName) -> Result<Option<Relation>> {
    const FIND: &str = "SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relrowsecurity \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = pg_catalog.to_regclass($1)";
    let found = client.rows(FIND, &[&name.quoted()]).await?;
    let Some(row) = found.first() else {
        return Ok(None);
    };
    let oid: i64 = value(row, 0)?;
    let kind: String = value(row, 3)?;
    let shape = match kind.as_str() {
        "r" | "m" => Shape::Heap,
        "p" => Shape::Partitioned,
        "v" | "f" => Shape::Opaque,
        _ => {
            return Err(Error::invalid(format!(
                "{} is neither a table nor a view",
                name.quoted()
            )));
        }
    };
    Ok(Some(Relation {
        oid,
        schema: value(row, 1)?,
        table: value(row, 2)?,
        shape,
        lockable: matches!(kind.as_str(), "r" | "p"),
        row_security: value(row, 4)?,
        columns: columns(client, oid).await?,
    }))
}

/// Says that there is no table of a name, and which may have been meant.
///
/// # Errors
/// The server's.
pub async fn absent(client: &mut Client, name: &TableName) -> Result<String> {
    // Those that the name would find first; no more than somebody could have meant.
    const TABLES: &str = "SELECT n.nspname::text, c.relname::text, pg_catalog.pg_table_is_visible(c.oid) \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'm', 'p', 'v', 'f') \
         AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
         AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') \
         ORDER BY 3 DESC, 1, 2 LIMIT 10000";
    let mut known = Vec::new();
    for row in client.rows(TABLES, &[]).await? {
        let (schema, table): (String, String) = (value(&row, 0)?, value(&row, 1)?);
        let is_found: bool = value(&row, 2)?;
        known.push(match is_found && name.schema.is_none() {
            true => table,
            false => format!("{schema}.{table}"),
        });
    }
    let wanted = match &name.schema {
        Some(schema) => format!("{schema}.{}", name.table),
        None => name.table.clone(),
    };
    // A table of that name in a schema that is not searched.
    let behind = known.iter().find(|known| {
        name.schema.is_none()
            && known
                .split_once('.')
                .is_some_and(|(_, table)| table == wanted)
    });
    let near = behind
        .map(String::as_str)
        .or_else(|| meant(&wanted, known.iter().map(String::as_str)));
    let place = client.place();
    Ok(match near {
        Some(near) => format!("{place} has no table {wanted}: did you mean {near}?"),
        None => format!("{place} has no table {wanted}"),
    })
}

/// The columns in their order, domains taken as the types below them.
async fn columns(client: &mut Client, oid: i64) -> Result<Vec<Column>> {
    const COLUMNS: &str = "\
        WITH RECURSIVE attribute AS ( \
            SELECT attnum, attname, attnotnull, attgenerated, attcollation, atttypid, atttypmod, \
                   pg_catalog.format_type(atttypid, atttypmod) AS shown \
            FROM pg_catalog.pg_attribute \
            WHERE attrelid = $1::text::int8::oid AND attnum > 0 AND NOT attisdropped \
        ), base AS ( \
            SELECT attnum, atttypid AS oid, atttypmod AS typmod FROM attribute \
            UNION ALL \
            SELECT b.attnum, t.typbasetype, CASE WHEN t.typtypmod >= 0 THEN t.typtypmod ELSE b.typmod END \
            FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.oid WHERE t.typtype = 'd' \
        ) \
        SELECT a.attname::text, a.attnotnull, a.attgenerated <> '', a.shown, \
               t.oid::int8, b.typmod, t.typtype::text, \
               CASE WHEN t.typcategory = 'A' AND t.typlen = -1 THEN t.typelem::int8 ELSE 0 END, \
               coalesce(e.typtype::text, ''), pg_catalog.format_type(t.typelem, NULL), \
               coalesce(l.collisdeterministic, true), \
               pg_catalog.current_setting('server_encoding') = 'UTF8' \
        FROM attribute a JOIN base b USING (attnum) \
        JOIN pg_catalog.pg_type t ON t.oid = b.oid AND t.typtype <> 'd' \
        LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem \
        LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation \
        ORDER BY a.attnum";
    let rows = client.rows(COLUMNS, &[&oid.to_string()]).await?;
    rows.iter()
        .map(|row| {
            let shown: String = value(row, 3)?;
            let element: i64 = value(row, 7)?;
            let comparison = match (value::<bool>(row, 10)?, value::<bool>(row, 11)?) {
                (false, _) => Comparison::Never,
                (true, false) => Comparison::Equality,
                (true, true) => Comparison::Bytes,
            };
            let typmod: i32 = value(row, 5)?;
            let kind = if element > 0 {
                let name: String = value::<Option<String>>(row, 9)?.unwrap_or_default();
                let item = kind(
                    element,
                    typmod,
                    &value::<String>(row, 8)?,
                    name.as_str(),
                    comparison,
                );
                match (item, u32::try_from(element)) {
                    (Kind::Other { .. }, _) | (_, Err(_)) => Kind::Other { sql: shown },
                    (item, Ok(oid)) => Kind::Array {
                        item: Box::new(item),
                        oid,
                    },
                }
            } else {
                let typtype: String = value(row, 6)?;
                kind(value(row, 4)?, typmod, &typtype, &shown, comparison)
            };
            Ok(Column {
                name: value(row, 0)?,
                kind,
                not_null: value(row, 1)?,
                generated: value(row, 2)?,
            })
        })
        .collect()
}

/// A type by its number in `pg_type.dat`.
fn kind(oid: i64, typmod: i32, typtype: &str, shown: &str, comparison: Comparison) -> Kind {
    let text = |comparison| Kind::Text {
        sql: shown.to_owned(),
        // The server's numbers are unsigned and have 32 bits.
        oid: u32::try_from(oid).unwrap_or_default(),
        comparison,
    };
    match (oid, typtype) {
        (16, _) => Kind::Bool,
        (17, _) => Kind::Bytea,
        (20, _) => Kind::Int8,
        (21, _) => Kind::Int2,
        (23, _) => Kind::Int4,
        (26, _) => Kind::Oid,
        // text, varchar, name; the blanks that fill up a char(n) do not count when the server compares.
        (25 | 1043 | 19, _) => text(comparison),
        (1042, _) => text(Comparison::Never),
        // An enum's order is that of its declaration.
        (_, "e") => text(Comparison::Equality),
        (114, _) => Kind::Json,
        (700, _) => Kind::Float4,
        (701, _) => Kind::Float8,
        (1082, _) => Kind::Date,
        (1083, _) => Kind::Time,
        (1114, _) => Kind::Timestamp,
        (1184, _) => Kind::Timestamptz,
        (1186, _) => Kind::Interval,
        (1700, _) if typmod < 4 => Kind::Numeric {
            precision: UNBOUNDED_NUMERIC.0,
            scale: UNBOUNDED_NUMERIC.1,
            bounded: false,
        },
        (1700, _) => {
            // Precision in the upper half, scale as eleven bits with a sign (numeric.c, numeric_typmod_scale).
            let typmod = typmod - 4;
            let scale = ((typmod & 0x7ff) ^ 1024) - 1024;
            Kind::numeric((typmod >> 16) & 0xffff, scale)
        }
        (2950, _) => Kind::Uuid,
        (3802, _) => Kind::Jsonb,
        _ => Kind::Other {
            sql: shown.to_owned(),
        },
    }
}

/// The relations below a table that have rows of their own: itself, its partitions, tables that inherit from it.
///
/// # Errors
/// The server's.
pub async fn leaves(client: &mut Client, oid: i64) -> Result<Vec<Leaf>> {
    // `reltuples` counts rows at the time of the last VACUUM or ANALYZE: it is scaled to the size of today.
    const LEAVES: &str = "\
        WITH RECURSIVE tree AS ( \
            SELECT $1::text::int8::oid AS oid \
            UNION \
            SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid \
        ), sized AS ( \
            SELECT c.*, n.nspname, CASE WHEN c.relkind IN ('r', 'm') THEN pg_catalog.pg_relation_size(c.oid) \
                   / pg_catalog.current_setting('block_size')::int8 ELSE 0 END AS blocks \
            FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid \
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            WHERE c.relkind IN ('r', 'm', 'f') \
        ) \
        SELECT nspname::text, relname::text, relkind <> 'f', coalesce(blocks, 0), \
               CASE WHEN reltuples < 0 THEN NULL \
                    WHEN relkind = 'f' THEN reltuples::int8 \
                    WHEN relpages = 0 THEN NULL \
                    ELSE (reltuples / relpages * blocks)::int8 END \
        FROM sized ORDER BY oid";
    let rows = client.rows(LEAVES, &[&oid.to_string()]).await?;
    rows.iter()
        .map(|row| {
            Ok(Leaf {
                schema: value(row, 0)?,
                table: value(row, 1)?,
                has_blocks: value(row, 2)?,
                blocks: value(row, 3)?,
                rows: value::<Option<i64>>(row, 4)?.and_then(|rows| u64::try_from(rows).ok()),
            })
        })
        .collect()
}

/// Whether a unique index (or primary key) covers exactly these columns.
///
/// # Errors
/// The server's.
pub async fn has_unique_index(client: &mut Client, oid: i64, key: &[String]) -> Result<bool> {
    const INDEXES: &str = "\
        SELECT pg_catalog.string_agg(a.attname, chr(10) ORDER BY a.attname COLLATE \"C\") \
        FROM pg_catalog.pg_index i \
        CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) \
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
        WHERE i.indrelid = $1::text::int8::oid AND i.indisunique AND i.indisvalid AND i.indimmediate \
          AND i.indpred IS NULL AND i.indexprs IS NULL AND k.place <= i.indnkeyatts \
        GROUP BY i.indexrelid";
    let mut key: Vec<&str> = key.iter().map(String::as_str).collect();
    key.sort_unstable();
    let wanted = key.join("\n");
    for row in client.rows(INDEXES, &[&oid.to_string()]).await? {
        if value::<String>(&row, 0)? == wanted {
            return Ok(true);
        }
    }
    Ok(false)
}
