//! The sink committer: one transaction moves the staged rows into the target and writes down which run did it.

use super::Mode;
use super::commits::{Commits, signed};
use super::target::{Target, union};
use crate::connector::{Begin, Part, SinkCommitter, SinkRun};
use crate::error::{Error, Result};
use crate::sinks::again::ASK_AGAIN;
use crate::sources::postgres::client::{COMMIT, Client, Database, STATEMENT, quote};
use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgArguments;

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
    pub commits: Commits,
    /// The names of this run's staging tables begin with it, those of every generation; theirs follows.
    pub prefix: String,
}

impl Committer {
    /// Everything from BEGIN to just before COMMIT.
    async fn transact(&self, client: &mut Client, staged: &[Staged]) -> Result<()> {
        client.run("BEGIN", STATEMENT).await?;
        if self.commits.lock(client).await? >= signed(self.run.epoch) {
            return Ok(());
        }
        self.check_staged(client, staged).await?;
        let target = self.target.quoted();
        if !self.target.exists {
            self.target.create_within(client).await?;
        }
        if self.target.mode == Mode::Overwrite {
            // Not TRUNCATE: that would wait for every reader, this job's own snapshot among them.
            client.run(format!("DELETE FROM {target}"), COMMIT).await?;
        }
        if !staged.is_empty() {
            let tables = tables(staged);
            client
                .run(self.target.insert(&union(&tables)), COMMIT)
                .await?;
            let drop = format!("DROP TABLE {}", tables.join(", "));
            client.run(drop, STATEMENT).await?;
        }
        client
            .run(self.commits.done(self.run.epoch), STATEMENT)
            .await?;
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
                self.commits.last(&mut client).await
            };
            match answer.await {
                Ok(Some(epoch)) if epoch >= signed(self.run.epoch) => {
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
                self.commits.table(),
                self.commits.this_query(),
                self.run.epoch
            ),
        ))
    }

    /// Says which key came twice, if that is what the server refused.
    async fn explain(&self, error: Error, client: &mut Client, staged: &[Staged]) -> Error {
        // The transaction failed: the staging tables are there again, and free for whoever drops them.
        if client.run("ROLLBACK", STATEMENT).await.is_err() || staged.is_empty() {
            return error;
        }
        let from = union(&tables(staged));
        self.target
            .explain(error, client, &from, PgArguments::default())
            .await
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

#[async_trait]
impl SinkCommitter for Committer {
    async fn begin(&self) -> Result<Begin> {
        let mut client = self.database.connect().await?;
        self.commits.create(&mut client).await?;
        let epoch = self.commits.claim(&mut client).await?;
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
