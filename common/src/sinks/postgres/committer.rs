//! The sink committer: one transaction moves the staged rows into the target and writes down which run did it.

use super::Mode;
use super::target::Target;
use crate::connector::{Begin, Part, SinkCommitter, SinkRun};
use crate::error::{Error, ErrorKind, Result};
use crate::sources::postgres::catalog::{self, TableName};
use crate::sources::postgres::client::{COMMIT, Client, Database, STATEMENT, literal, quote};
use async_trait::async_trait;
use sqlx::Row;
use std::time::Duration;

/// The lock under which this sink creates tables: CREATE TABLE IF NOT EXISTS fails when two do it at once.
const CREATE_LOCK: &str =
    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('essaim create', 0))";

/// Pauses before each question after the fate of a commit: about what a restart of the server takes.
const ASK_AGAIN: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_millis(1500),
    Duration::from_secs(3),
    Duration::from_secs(5),
];

/// A part whose rows lie in a staging table.
struct Staged {
    /// Quoted, with its schema.
    table: String,
    /// How many the writer put there.
    rows: u64,
}

/// Commits one run.
#[derive(Debug)]
pub struct Committer {
    pub database: Database,
    pub target: Target,
    pub run: SinkRun,
    /// The names of this run's staging tables begin with it, those of every generation; theirs follows.
    pub prefix: String,
}

impl Committer {
    /// The table of commits, beside the target.
    fn commits(&self) -> String {
        format!("{}.essaim_commits", quote(&self.target.schema))
    }

    /// The rows of this job's INSERT in the table of commits.
    fn this_query(&self) -> String {
        format!(
            "job = {} AND query = {}",
            literal(&self.run.job),
            self.run.query
        )
    }

    async fn create_commits(&self, client: &mut Client) -> Result<()> {
        let name = TableName {
            schema: Some(self.target.schema.clone()),
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
            self.commits()
        );
        client.run(create, STATEMENT).await?;
        Ok(())
    }

    fn superseded(&self) -> Error {
        Error::invalid(format!(
            "job {} was started again by another master: generation {} may not write to {} any more",
            self.run.job,
            self.run.generation,
            self.target.quoted()
        ))
    }

    /// The generation that writes and the last epoch committed. Waits for a transaction that is about to change them,
    /// and keeps others from it until this one ends.
    async fn lock_commits(&self, client: &mut Client) -> Result<Option<(i64, i64)>> {
        let mine = format!(
            "SELECT generation, epoch FROM {} WHERE {} FOR UPDATE",
            self.commits(),
            self.this_query()
        );
        let rows = client.rows(&mine, &[]).await?;
        let read = |at| {
            rows.first()
                .map(|row| row.try_get::<i64, _>(at))
                .transpose()
                .map_err(|e| Error::internal(format!("essaim_commits: {e}")))
        };
        Ok(read(0)?.zip(read(1)?))
    }

    /// Everything from BEGIN to just before COMMIT.
    async fn transact(&self, client: &mut Client, staged: &[Staged]) -> Result<()> {
        client.run("BEGIN", STATEMENT).await?;
        let Some((generation, epoch)) = self.lock_commits(client).await? else {
            return Err(Error::internal("commit() was called before begin()"));
        };
        if generation > signed(self.run.generation) {
            return Err(self.superseded());
        }
        if epoch >= signed(self.run.epoch) {
            return Ok(());
        }
        self.check_staged(client, staged).await?;
        let target = self.target.quoted();
        if !self.target.exists {
            client
                .run(
                    format!("{CREATE_LOCK}; {}", self.target.create()),
                    STATEMENT,
                )
                .await?;
            let name = TableName {
                schema: Some(self.target.schema.clone()),
                table: self.target.table.clone(),
            };
            if let Some(relation) = catalog::relation(client, &name).await? {
                self.target.check_created(&relation)?;
            }
        }
        if self.target.mode == Mode::Overwrite {
            // Not TRUNCATE: that would wait for every reader, this job's own snapshot among them.
            client.run(format!("DELETE FROM {target}"), COMMIT).await?;
        }
        if !staged.is_empty() {
            let tables = tables(staged);
            client.run(self.target.insert(&tables), COMMIT).await?;
            let drop = format!("DROP TABLE {}", tables.join(", "));
            client.run(drop, STATEMENT).await?;
        }
        let done = format!(
            "UPDATE {} SET generation = {}, epoch = {}, committed_at = pg_catalog.now() WHERE {}",
            self.commits(),
            self.run.generation,
            self.run.epoch,
            self.this_query()
        );
        client.run(done, STATEMENT).await?;
        Ok(())
    }

    /// Looks whether every staging table still holds what its writer put there. The tables are unlogged: a server that
    /// recovers from a crash, or a standby that takes over, has them empty.
    async fn check_staged(&self, client: &mut Client, staged: &[Staged]) -> Result<()> {
        if staged.is_empty() {
            return Ok(());
        }
        let counts: Vec<String> = staged
            .iter()
            .enumerate()
            .map(|(part, Staged { table, .. })| {
                format!("SELECT {part}::bigint, pg_catalog.count(*) FROM {table}")
            })
            .collect();
        let rows = client
            .rows_within(&counts.join(" UNION ALL "), &[], COMMIT)
            .await?;
        for row in rows {
            let read = |at| {
                row.try_get::<i64, _>(at)
                    .map_err(|e| Error::internal(format!("the count of staged rows: {e}")))
            };
            let (part, found) = (read(0)?, read(1)?);
            let Some(part) = usize::try_from(part).ok().and_then(|part| staged.get(part)) else {
                continue;
            };
            if found != signed(part.rows) {
                return Err(Error::unavailable(format!(
                    "{}: {} holds {found} of the {} rows written to it, so nothing was committed: \
                     the server lost staged rows, as it does when it recovers from a crash. Run the job again",
                    self.target.quoted(),
                    part.table,
                    part.rows
                )));
            }
        }
        Ok(())
    }

    /// Finds out what became of a COMMIT whose answer did not come.
    async fn ask(&self, lost: Error) -> Result<()> {
        let mut last = lost.clone();
        for pause in ASK_AGAIN {
            tokio::time::sleep(pause).await;
            let answer = async {
                let mut client = self.database.connect().await?;
                // The lock is free once that COMMIT, which may go on without its client, has ended either way.
                self.lock_commits(&mut client).await
            };
            match answer.await {
                Ok(Some((_, epoch))) if epoch >= signed(self.run.epoch) => {
                    tracing::info!(target = %self.target.quoted(), error = %lost, "committed, though the answer was lost");
                    return Ok(());
                }
                Ok(_) => return Err(lost.context("nothing was committed")),
                Err(error) if error.is_transient() => last = error,
                Err(error) => {
                    last = error;
                    break;
                }
            }
        }
        Err(Error::new(
            last.kind(),
            format!(
                "{}: whether the rows were committed is not known: {lost}; and since then: {last}. \
                 They are there if {} has a row with {} and epoch {}",
                self.target.quoted(),
                self.commits(),
                self.this_query(),
                self.run.epoch
            ),
        ))
    }

    /// Says which key came twice, if that is what the server refused.
    async fn explain(&self, error: Error, client: &mut Client, staged: &[Staged]) -> Error {
        // The transaction failed: the staging tables are there again, and free for whoever drops them.
        if client.run("ROLLBACK", STATEMENT).await.is_err()
            || error.kind() != ErrorKind::Data
            || self.target.key.is_empty()
            || staged.is_empty()
        {
            return error;
        }
        let find = self.target.find_duplicate(&tables(staged));
        let Ok(rows) = client.rows(&find, &[]).await else {
            return error;
        };
        let Some(row) = rows.first() else {
            return error;
        };
        match (row.try_get::<String, _>(0), row.try_get::<i64, _>(1)) {
            (Ok(key), Ok(count)) => Error::data(format!(
                "{}: the key ({}) = ({key}) comes {count} times among the rows to be written: \
                 group the query by the key, or choose one row of each",
                self.target.quoted(),
                self.target.key.join(", ")
            )),
            _ => error,
        }
    }

    /// Drops the staging tables of this run's generation and of lower ones, those of attempts that nobody waits for
    /// among them. A higher generation's are its own.
    async fn drop_staged(&self, client: &mut Client) -> Result<()> {
        const FIND: &str = "SELECT c.relname::text FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relkind = 'r' AND pg_catalog.starts_with(c.relname::text, $2)";
        let rows = client
            .rows(FIND, &[&self.target.schema, &self.prefix])
            .await?;
        for row in rows {
            let Ok(name) = row.try_get::<String, _>(0) else {
                continue;
            };
            let generation: Option<u64> = name
                .strip_prefix(&self.prefix)
                .and_then(|rest| rest.split_once('_')?.0.parse().ok());
            if generation.is_none_or(|generation| generation > self.run.generation) {
                continue;
            }
            let table = format!("{}.{}", quote(&self.target.schema), quote(&name));
            client
                .run(
                    format!("SET lock_timeout = '10s'; DROP TABLE IF EXISTS {table}"),
                    STATEMENT,
                )
                .await?;
        }
        Ok(())
    }
}

fn tables(staged: &[Staged]) -> Vec<String> {
    staged.iter().map(|part| part.table.clone()).collect()
}

/// PostgreSQL has no unsigned numbers; neither generations nor epochs come near the limit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[async_trait]
impl SinkCommitter for Committer {
    async fn begin(&self) -> Result<Begin> {
        let mut client = self.database.connect().await?;
        self.create_commits(&mut client).await?;
        // Taking the generation down shuts out every older master from here on. Epoch -1: nothing is committed yet.
        let claim = format!(
            "INSERT INTO {} AS c (job, query, generation, epoch) VALUES ({}, {}, {}, -1) \
             ON CONFLICT (job, query) DO UPDATE SET generation = EXCLUDED.generation \
             WHERE c.generation <= EXCLUDED.generation RETURNING c.epoch",
            self.commits(),
            literal(&self.run.job),
            self.run.query,
            self.run.generation
        );
        let rows = client.rows(&claim, &[]).await?;
        let Some(row) = rows.first() else {
            return Err(self.superseded());
        };
        let epoch: i64 = row
            .try_get(0)
            .map_err(|e| Error::internal(format!("essaim_commits: {e}")))?;
        if epoch >= signed(self.run.epoch) {
            return Ok(Begin::AlreadyCommitted);
        }
        // What a run before this one left when its master died.
        self.drop_staged(&mut client).await?;
        Ok(Begin::Fresh)
    }

    async fn commit(&self, parts: Vec<Part>) -> Result<()> {
        let staged: Vec<Staged> = parts
            .iter()
            .filter(|part| !part.payload.is_empty())
            .map(|part| Staged {
                table: format!("{}.{}", quote(&self.target.schema), quote(&part.payload)),
                rows: part.rows,
            })
            .collect();
        let mut client = self.database.connect().await?;
        if let Err(error) = self.transact(&mut client, &staged).await {
            return Err(self.explain(error, &mut client, &staged).await);
        }
        match client.run("COMMIT", COMMIT).await {
            Ok(_) => {}
            Err(error) if error.is_transient() => {
                drop(client);
                self.ask(error).await?;
            }
            Err(error) => return Err(self.explain(error, &mut client, &staged).await),
        }
        // The rows are visible: what cannot be dropped now is only litter.
        self.abort().await;
        Ok(())
    }

    async fn abort(&self) {
        let dropped = async {
            let mut client = self.database.connect().await?;
            self.drop_staged(&mut client).await
        };
        if let Err(error) = dropped.await {
            tracing::warn!(target = %self.target.quoted(), %error, "staging tables are left over");
        }
    }
}
