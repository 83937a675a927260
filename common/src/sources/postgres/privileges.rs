//! What the login may do, asked of the server without doing it (PostgreSQL manual, "Access Privilege Inquiry Functions").

use super::catalog::Relation;
use super::client::{Client, literal, quote};
use crate::error::{Error, Result};
use sqlx::Row;

/// Those of `wanted` (e.g. "SELECT") that the login lacks on a relation, where having them on `columns` is as good.
///
/// # Errors
/// The server's.
pub async fn missing(
    client: &mut Client,
    relation: &Relation,
    wanted: &[&str],
    columns: &[String],
) -> Result<Vec<String>> {
    let table = literal(&relation.quoted());
    let mut missing = Vec::new();
    for privilege in wanted {
        let mut sql = format!("SELECT pg_catalog.has_table_privilege({table}, '{privilege}')");
        // DELETE is granted on tables only.
        if *privilege != "DELETE" && !columns.is_empty() {
            let each = columns.iter().map(|column| {
                let column = literal(column);
                format!("pg_catalog.has_column_privilege({table}, {column}, '{privilege}')")
            });
            let each: Vec<String> = each.collect();
            sql.push_str(&format!(" OR ({})", each.join(" AND ")));
        }
        if !truth(client, &sql).await? {
            missing.push((*privilege).to_owned());
        }
    }
    Ok(missing)
}

/// Whether the login may create tables in a schema; `None` if there is no such schema.
///
/// # Errors
/// The server's.
pub async fn may_create(client: &mut Client, schema: &str) -> Result<Option<bool>> {
    let schema = literal(&quote(schema));
    let there = format!("SELECT pg_catalog.to_regnamespace({schema}) IS NOT NULL");
    if !truth(client, &there).await? {
        return Ok(None);
    }
    let may = format!(
        "SELECT pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace({schema})::oid, 'CREATE')"
    );
    truth(client, &may).await.map(Some)
}

/// Whether the login may create temporary tables.
///
/// # Errors
/// The server's.
pub async fn may_create_temporary(client: &mut Client) -> Result<bool> {
    let sql =
        "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')";
    truth(client, sql).await
}

/// Whether the server takes no writes: a standby, or one that is set so.
///
/// # Errors
/// The server's.
pub async fn is_read_only(client: &mut Client) -> Result<bool> {
    let sql = "SELECT pg_catalog.current_setting('transaction_read_only') = 'on'";
    truth(client, sql).await
}

/// The login's name, quoted for SQL.
///
/// # Errors
/// The server's.
pub async fn login(client: &mut Client) -> Result<String> {
    let rows = client
        .rows("SELECT pg_catalog.quote_ident(current_user)", &[])
        .await?;
    rows.first()
        .and_then(|row| row.try_get(0).ok())
        .ok_or_else(|| Error::internal("current_user has no row"))
}

/// Columns that must be given a value: NOT NULL, and the server has none for them.
///
/// # Errors
/// The server's.
pub async fn required_columns(client: &mut Client, oid: i64) -> Result<Vec<String>> {
    const REQUIRED: &str = "SELECT attname::text FROM pg_catalog.pg_attribute \
         WHERE attrelid = $1::text::int8::oid AND attnum > 0 AND NOT attisdropped \
           AND attnotnull AND NOT atthasdef AND attidentity = '' ORDER BY attnum";
    let rows = client.rows(REQUIRED, &[&oid.to_string()]).await?;
    let names = rows.iter().map(|row| row.try_get::<String, _>(0));
    names
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| Error::internal(format!("PostgreSQL's catalog: {e}")))
}

async fn truth(client: &mut Client, sql: &str) -> Result<bool> {
    let rows = client.rows(sql, &[]).await?;
    Ok(rows
        .first()
        .and_then(|row| row.try_get::<Option<bool>, _>(0).ok().flatten())
        .unwrap_or(false))
}
