//! The table of commits beside a target: for each INSERT of a job who may write, and the last epoch that is in.

use crate::connector::SinkRun;
use crate::error::{Error, Result};
use crate::sources::postgres::catalog::TableName;
use crate::sources::postgres::client::{Client, STATEMENT, literal, quote};
use sqlx::Row;
use sqlx::postgres::PgRow;

/// The lock under which the sinks create tables: CREATE TABLE IF NOT EXISTS fails when two do it at once.
pub const CREATE_LOCK: &str =
    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('essaim create', 0))";

/// The row of one INSERT.
#[derive(Debug, Clone)]
pub struct Commits {
    /// Of the target.
    schema: String,
    /// For people: the target.
    target: String,
    job: String,
    query: u32,
    generation: u64,
}

impl Commits {
    /// That of `run`, beside the quoted `target` in `schema`.
    pub fn new(schema: &str, target: String, run: &SinkRun) -> Self {
        Self {
            schema: schema.to_owned(),
            target,
            job: run.job.clone(),
            query: run.query,
            generation: run.generation,
        }
    }

    /// For SQL.
    pub fn table(&self) -> String {
        format!("{}.essaim_commits", quote(&self.schema))
    }

    /// The condition that finds the row.
    pub fn this_query(&self) -> String {
        format!("job = {} AND query = {}", literal(&self.job), self.query)
    }

    /// Creates the table unless it is there.
    ///
    /// # Errors
    /// The server's.
    pub async fn create(&self, client: &mut Client) -> Result<()> {
        let name = TableName {
            schema: Some(self.schema.clone()),
            table: "essaim_commits".to_owned(),
        };
        let found = client
            .rows(
                "SELECT pg_catalog.to_regclass($1) IS NOT NULL",
                &[&name.quoted()],
            )
            .await?;
        if found.first().and_then(|row| row.try_get(0).ok()) == Some(true) {
            return Ok(());
        }
        let create = format!(
            "BEGIN; {CREATE_LOCK}; \
             CREATE TABLE IF NOT EXISTS {} (job text, query int, generation bigint NOT NULL, epoch bigint NOT NULL, \
             committed_at timestamptz DEFAULT pg_catalog.now(), PRIMARY KEY (job, query)); COMMIT",
            self.table()
        );
        client.run(create, STATEMENT).await?;
        Ok(())
    }

    /// Takes the generation down, which shuts out every older master from here on. Returns the last epoch committed, or
    /// -1. Waits for a transaction that is about to commit one.
    ///
    /// # Errors
    /// A higher generation has been seen; the server's.
    pub async fn claim(&self, client: &mut Client) -> Result<i64> {
        let claim = format!(
            "INSERT INTO {} AS c (job, query, generation, epoch) VALUES ({}, {}, {}, -1) \
             ON CONFLICT (job, query) DO UPDATE SET generation = EXCLUDED.generation \
             WHERE c.generation <= EXCLUDED.generation RETURNING c.generation, c.epoch",
            self.table(),
            literal(&self.job),
            self.query,
            self.generation
        );
        let rows = client.rows(&claim, &[]).await?;
        let Some(row) = rows.first() else {
            return Err(self.superseded());
        };
        number(row, 1)
    }

    /// The query of the row, which also keeps others from it until the transaction ends: for [`Self::check`].
    pub fn lock_row(&self) -> String {
        format!(
            "SELECT generation, epoch FROM {} WHERE {} FOR UPDATE",
            self.table(),
            self.this_query()
        )
    }

    /// The last epoch committed, or -1, from what [`Self::lock_row`] found.
    ///
    /// # Errors
    /// A higher generation has been seen; nothing was claimed.
    pub fn check(&self, rows: &[PgRow]) -> Result<i64> {
        let Some(row) = rows.first() else {
            return Err(Error::internal(format!(
                "{} has no row with {}: commit() was called before begin(), or somebody removed it",
                self.table(),
                self.this_query()
            )));
        };
        if number(row, 0)? > signed(self.generation) {
            return Err(self.superseded());
        }
        number(row, 1)
    }

    /// Locks the row within a transaction; returns the last epoch committed, or -1.
    ///
    /// # Errors
    /// As [`Self::check`], and the server's.
    pub async fn lock(&self, client: &mut Client) -> Result<i64> {
        let rows = client.rows(&self.lock_row(), &[]).await?;
        self.check(&rows)
    }

    /// The last epoch committed by whatever generation, outside of a transaction. Waits for one that is about to commit.
    ///
    /// # Errors
    /// The server's.
    pub async fn last(&self, client: &mut Client) -> Result<Option<i64>> {
        let rows = client.rows(&self.lock_row(), &[]).await?;
        rows.first().map(|row| number(row, 1)).transpose()
    }

    /// The statement that writes an epoch down.
    pub fn done(&self, epoch: u64) -> String {
        format!(
            "UPDATE {} SET generation = {}, epoch = {epoch}, committed_at = pg_catalog.now() WHERE {}",
            self.table(),
            self.generation,
            self.this_query()
        )
    }

    fn superseded(&self) -> Error {
        Error::invalid(format!(
            "job {} was started again by another master: generation {} may not write to {} any more",
            self.job, self.generation, self.target
        ))
    }
}

fn number(row: &PgRow, at: usize) -> Result<i64> {
    row.try_get(at)
        .map_err(|e| Error::internal(format!("essaim_commits: {e}")))
}

/// PostgreSQL has no unsigned numbers; neither generations nor epochs come near the limit.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
