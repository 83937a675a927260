//! Bad records as rows of a Postgres table, each place once however often its task runs.

use super::BadRecord;
use crate::error::{Error, Result};
use crate::secret::Secret;
use crate::sources::postgres::tls::connect_options;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use std::future::Future;
use std::time::Duration;

/// A table with the primary key `(topic, partition, "offset")`.
pub struct DeadLetterTable<'a> {
    location: &'a Secret,
    /// The table's name as given, for messages.
    name: &'a str,
    timeout: Duration,
    connection: Option<PgConnection>,
}

impl<'a> DeadLetterTable<'a> {
    pub fn new(location: &'a Secret, name: &'a str, timeout: Duration) -> Self {
        Self {
            location,
            name,
            timeout,
            connection: None,
        }
    }

    pub fn put(&mut self, records: &[BadRecord<'_>]) -> Result<()> {
        // The reader's thread belongs to a runtime, whose clock and network it may use.
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|e| Error::internal(format!("a Kafka reader outside of a runtime: {e}")))?;
        let (name, timeout) = (self.name, self.timeout);
        runtime.block_on(async {
            let connection = match &mut self.connection {
                Some(connection) => connection,
                empty => {
                    let opened = within(name, timeout, open(self.location, name)).await?;
                    empty.insert(opened)
                }
            };
            within(name, timeout, insert(connection, name, records)).await
        })
    }
}

async fn within<T>(
    name: &str,
    timeout: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T> {
    let refused = |reason: String| {
        Error::unavailable(format!(
            "bad records cannot be put into the dead-letter table {name} (options dead_letter_location and dead_letter_table): {reason}"
        ))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(_) => Err(refused(format!(
            "no answer within {} ms (option request_timeout)",
            timeout.as_millis()
        ))),
    }
}

/// `"schema"."table"` of a name whose parts are separated by a dot.
fn quoted(name: &str) -> String {
    let parts: Vec<String> = name
        .split('.')
        .map(|part| format!("\"{}\"", part.replace('"', "\"\"")))
        .collect();
    parts.join(".")
}

async fn open(location: &Secret, name: &str) -> Result<PgConnection, sqlx::Error> {
    let options =
        connect_options(location).map_err(|e| sqlx::Error::Configuration(Box::new(e)))?;
    let mut connection = PgConnection::connect_with(&options).await?;
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {} (topic text, partition integer, \"offset\" bigint, key bytea, value bytea, \
         reason text NOT NULL, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (topic, partition, \"offset\"))",
        quoted(name)
    );
    // Two workers that create it at once: IF NOT EXISTS does not keep one from failing in the catalogue. It is there then.
    let made = sqlx::query(AssertSqlSafe(create))
        .execute(&mut connection)
        .await;
    match made {
        Err(sqlx::Error::Database(error))
            if matches!(error.code().as_deref(), Some("23505" | "42P07" | "42710")) => {}
        made => {
            made?;
        }
    }
    Ok(connection)
}

async fn insert(
    connection: &mut PgConnection,
    name: &str,
    records: &[BadRecord<'_>],
) -> Result<(), sqlx::Error> {
    let text = format!(
        "INSERT INTO {} (topic, partition, \"offset\", key, value, reason) \
         SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bytea[], $5::bytea[], $6::text[]) ON CONFLICT DO NOTHING",
        quoted(name)
    );
    // A text in Postgres holds no NUL, and a reason may quote the record.
    let reasons: Vec<String> = records
        .iter()
        .map(|record| record.reason.replace('\0', "\u{fffd}"))
        .collect();
    sqlx::query(AssertSqlSafe(text))
        .bind(records.iter().map(|r| r.topic).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.partition).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.offset).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.key).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.value).collect::<Vec<_>>())
        .bind(reasons)
        .execute(connection)
        .await?;
    Ok(())
}
