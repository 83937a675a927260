//! The sink of a streaming job: an epoch is one transaction of three round trips on a connection that stays open.

use super::Mode;
use super::arrays::{Arrays, travels, unnest};
use super::commits::{Commits, signed};
use super::target::{Target, union};
use super::writer::{copy, next_rows, staged_columns};
use crate::connector::SinkRun;
use crate::error::{Error, Result};
use crate::sinks::again::again;
use crate::sources::postgres::client::{Client, Database, IDLE, STATEMENT, literal};
use crate::sources::postgres::types::Kind;
use crate::stream::StreamSink;
use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use sqlx::postgres::PgArguments;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For the statements that write an epoch; the server's own deadline for a COPY whose client has stalled, too.
const EPOCH: Duration = Duration::from_secs(30 * 60);

/// Rows and bytes that are sent with the statement that inserts them. COPY ends with a small message after a small one,
/// which on TCP waits until the server acknowledges the first, up to 40 ms: that matters for epochs of few rows only.
const FEW_ROWS: usize = 8 * 1024;
const FEW_BYTES: usize = 1024 * 1024;

/// Holds the rows of an epoch where they cannot be copied straight into the target. It is the connection's own.
const ROWS: &str = "pg_temp.essaim_rows";

/// Writes the epochs of one INSERT.
#[derive(Debug)]
pub struct PostgresStream {
    database: Database,
    target: Target,
    commits: Commits,
    /// What the sessions of this INSERT are called, in every generation; theirs follows.
    session_name: String,
    generation: u64,
    columns: Vec<(String, Kind)>,
    /// Whether the rows that are copied take the way over [`ROWS`].
    staged: bool,
    /// Inserts the rows that come as parameters; `None` where they must be copied, however few.
    insert: Option<String>,
    /// One epoch at a time.
    session: tokio::sync::Mutex<Session>,
}

/// The rows of an epoch, once their number is known.
enum Rows {
    None,
    Few {
        count: u64,
        arrays: Arrays,
    },
    /// The first of them, and the others.
    Many(RecordBatch, SendableRecordBatchStream),
}

/// What is kept between epochs.
#[derive(Debug, Default)]
struct Session {
    /// Ready for an epoch, outside of a transaction. `None` after an error.
    open: Option<Open>,
}

/// A connection and what it has seen.
#[derive(Debug)]
struct Open {
    client: Client,
    /// The last epoch committed, or -1.
    committed: i64,
    since: Instant,
}

impl PostgresStream {
    pub fn new(database: Database, target: Target, run: &SinkRun) -> Self {
        let columns = target.kinds();
        let staged = target.mode == Mode::Upsert
            || !target.takes_copy
            || columns
                .iter()
                .any(|(_, kind)| matches!(kind, Kind::Other { .. }));
        let arrays = columns.iter().all(|(_, kind)| travels(kind));
        let insert = arrays.then(|| target.insert(&unnest(&columns)));
        Self {
            database,
            commits: Commits::new(&target.schema, target.quoted(), run),
            target,
            session_name: session_name(run),
            generation: run.generation,
            columns,
            staged,
            insert,
            session: tokio::sync::Mutex::default(),
        }
    }

    /// A connection by whose name a successor finds it, and which the server does not let stall for long.
    async fn connect(&self) -> Result<Client> {
        let mut client = self.database.connect().await?;
        let name = literal(&format!("{}{}", self.session_name, self.generation));
        let settings = format!(
            "SET application_name = {name}; SET idle_in_transaction_session_timeout = '10s'; \
             SET statement_timeout = '{}s'",
            EPOCH.as_secs()
        );
        client.run(settings, STATEMENT).await?;
        Ok(client)
    }

    /// Creates the table of staged rows on a new connection.
    async fn prepare(&self, client: &mut Client) -> Result<()> {
        if self.staged {
            let create = format!(
                "CREATE TEMP TABLE {ROWS} ({}) ON COMMIT DELETE ROWS",
                staged_columns(&self.columns)
            );
            client.run(create, STATEMENT).await?;
        }
        Ok(())
    }

    /// Ends the sessions that this login has open for the same INSERT, those of lower generations and those that this
    /// one has lost: a master that was stopped in the middle of a COPY would hold its locks for ever.
    async fn end_sessions(&self, client: &mut Client) -> Result<()> {
        let mine = literal(&format!("^{}[0-9]+$", self.session_name));
        let find = format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
             WHERE usename = session_user AND datname = pg_catalog.current_database() \
             AND pid <> pg_catalog.pg_backend_pid() \
             AND CASE WHEN application_name ~ {mine} \
                 THEN pg_catalog.substr(application_name, {})::numeric <= {} ELSE false END",
            self.session_name.len() + 1,
            self.generation
        );
        client.rows(&find, &[]).await?;
        Ok(())
    }

    /// Everything that [`StreamSink::begin`] does, once.
    async fn try_begin(&self) -> Result<Open> {
        let mut client = self.connect().await?;
        self.end_sessions(&mut client).await?;
        self.commits.create(&mut client).await?;
        // A session of another login is waited for until its own deadlines end it, which `again` goes beyond.
        client.run("SET lock_timeout = '5s'", STATEMENT).await?;
        let committed = self.commits.claim(&mut client).await?;
        client.run("RESET lock_timeout", STATEMENT).await?;
        if !self.target.exists {
            client.run("BEGIN", STATEMENT).await?;
            self.target.create_within(&mut client).await?;
            client.run("COMMIT", STATEMENT).await?;
        }
        self.prepare(&mut client).await?;
        Ok(Open {
            client,
            committed,
            since: Instant::now(),
        })
    }

    /// A new connection in place of one that was lost; finds out what became of its last transaction.
    async fn reopen(&self) -> Result<Open> {
        let mut client = self.connect().await?;
        let committed = self.commits.lock(&mut client).await?;
        self.prepare(&mut client).await?;
        Ok(Open {
            client,
            committed,
            since: Instant::now(),
        })
    }

    /// The connection that is there, or a new one.
    async fn open(&self, session: &mut Session) -> Result<Open> {
        match session.open.take() {
            Some(open) if open.since.elapsed() < IDLE => Ok(open),
            _ => again(|| self.reopen()).await,
        }
    }

    /// Begins the transaction and locks the row of commits.
    async fn lock(&self, open: &mut Open) -> Result<()> {
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {}",
            self.commits.lock_row()
        );
        let rows = open.client.raw_rows(&begin, STATEMENT).await?;
        open.committed = self.commits.check(&rows)?;
        Ok(())
    }

    /// Reads rows until it is clear whether they are few.
    async fn look(&self, rows: SendableRecordBatchStream) -> Result<Rows> {
        let schema = rows.schema();
        let rows = RecordBatchStreamAdapter::new(Arc::clone(&schema), rows.fuse());
        let mut rows: SendableRecordBatchStream = Box::pin(rows);
        let mut head = Vec::new();
        let mut count = 0;
        let most = if self.insert.is_some() { FEW_ROWS } else { 0 };
        while count <= most {
            if let Some(batch) = next_rows(&mut rows).await? {
                count += batch.num_rows();
                head.push(batch);
                continue;
            }
            if head.is_empty() {
                return Ok(Rows::None);
            }
            let arrays = Arrays::encode(&head, &self.columns, FEW_BYTES);
            if let Some(arrays) = arrays.map_err(|e| e.context(self.target.quoted()))? {
                let count = count as u64;
                return Ok(Rows::Few { count, arrays });
            }
            break;
        }
        let first = head.remove(0);
        let rest = futures::stream::iter(head.into_iter().map(Ok)).chain(rows);
        let rest = RecordBatchStreamAdapter::new(schema, rest);
        Ok(Rows::Many(first, Box::pin(rest)))
    }

    /// Sends the rows into the open transaction; returns how many.
    async fn send(&self, client: &mut Client, rows: &mut Rows) -> Result<u64> {
        let target = self.target.quoted();
        if self.target.mode == Mode::Overwrite {
            // Not TRUNCATE: readers would wait, and those with an older snapshot would find nothing.
            client.run(format!("DELETE FROM {target}"), EPOCH).await?;
        }
        match (rows, &self.insert) {
            (Rows::Few { count, arrays }, Some(insert)) => {
                client.rows_with(insert, arrays.arguments()?, EPOCH).await?;
                Ok(*count)
            }
            (Rows::Many(first, rest), _) => {
                let into = match self.staged {
                    true => ROWS.to_owned(),
                    false => format!("{target} ({})", self.target.list()),
                };
                let statement = format!("COPY {into} FROM STDIN (FORMAT binary)");
                copy(client, &statement, &target, &self.columns, first, rest).await
            }
            _ => Ok(0),
        }
    }

    /// What ends the transaction, in one round trip. The savepoint keeps the staged rows for [`Target::explain`].
    fn finish(&self, epoch: u64, rows: &Rows) -> String {
        let insert = match rows {
            Rows::Many(..) if self.staged => {
                let insert = self.target.insert(&union(&[ROWS.to_owned()]));
                format!("SAVEPOINT staged; {insert}; ")
            }
            _ => String::new(),
        };
        format!("{insert}{}; COMMIT", self.commits.done(epoch))
    }

    /// Says what the server refused. The connection is of no more use.
    async fn explain(&self, error: Error, mut client: Client, rows: Rows) -> Error {
        let error = error.context(self.target.quoted());
        let (back, from, parameters) = match &rows {
            Rows::None => return error,
            Rows::Few { arrays, .. } => match arrays.arguments() {
                Ok(parameters) => ("ROLLBACK", unnest(&self.columns), parameters),
                Err(_) => return error,
            },
            Rows::Many(..) => (
                "ROLLBACK TO SAVEPOINT staged",
                union(&[ROWS.to_owned()]),
                PgArguments::default(),
            ),
        };
        if client.run(back, STATEMENT).await.is_err() {
            return error;
        }
        self.target
            .explain(error, &mut client, &from, parameters)
            .await
    }
}

/// `essaim JOB_QUERY g`; the generation follows. The server cuts a name after 63 bytes, which leaves 22 digits.
fn session_name(run: &SinkRun) -> String {
    const JOB: usize = 32;
    let job: String = run.job.chars().filter(char::is_ascii_hexdigit).collect();
    let job = &job[job.len().saturating_sub(JOB)..];
    format!("essaim {job}_{} g", run.query)
}

#[async_trait]
impl StreamSink for PostgresStream {
    async fn begin(&self) -> Result<Option<u64>> {
        let mut session = self.session.lock().await;
        session.open = None;
        let open = again(|| self.try_begin())
            .await
            .map_err(|e| e.context(self.target.quoted()))?;
        let committed = open.committed;
        session.open = Some(open);
        // Epoch -1: nothing is committed yet.
        Ok(u64::try_from(committed).ok())
    }

    async fn commit(&self, epoch: u64, rows: SendableRecordBatchStream) -> Result<u64> {
        let mut session = self.session.lock().await;
        let session = &mut *session;
        // It is taken out for the time being: whatever goes wrong, also that nobody waits for the end, closes it.
        let mut open = self.open(session).await?;
        if open.committed >= signed(epoch) {
            session.open = Some(open);
            return Ok(0);
        }
        // Rows may be long in coming, and the server ends a session that is idle within a transaction.
        let mut rows = self.look(rows).await?;
        if let Err(error) = self.lock(&mut open).await {
            if !error.is_transient() {
                return Err(error);
            }
            // The connection was lost since the last epoch, as by a restart of the server: nothing has been sent yet.
            tracing::info!(target = %self.target.quoted(), %error, "a new connection for the epoch");
            open = again(|| async {
                let mut open = self.reopen().await?;
                self.lock(&mut open).await?;
                Ok(open)
            })
            .await?;
        }
        if open.committed >= signed(epoch) {
            return Ok(0);
        }
        let count = match self.send(&mut open.client, &mut rows).await {
            Ok(count) => count,
            Err(error) if matches!(rows, Rows::Few { .. }) => {
                return Err(self.explain(error, open.client, rows).await);
            }
            Err(error) => return Err(error),
        };
        match open.client.run(self.finish(epoch, &rows), EPOCH).await {
            Ok(_) => {}
            Err(error) if error.is_transient() => {
                drop(open);
                let open = again(|| self.reopen()).await.map_err(|since| {
                    Error::new(
                        since.kind(),
                        format!(
                            "{}: whether epoch {epoch} was committed is not known: {error}; and since then: {since}",
                            self.target.quoted()
                        ),
                    )
                })?;
                let committed = open.committed;
                session.open = Some(open);
                if committed < signed(epoch) {
                    return Err(error.context(format!(
                        "{}: nothing of epoch {epoch} was committed",
                        self.target.quoted()
                    )));
                }
                tracing::info!(target = %self.target.quoted(), %error, "committed, though the answer was lost");
                return Ok(count);
            }
            Err(error) => return Err(self.explain(error, open.client, rows).await),
        }
        open.committed = signed(epoch);
        open.since = Instant::now();
        session.open = Some(open);
        Ok(count)
    }

    fn describe(&self) -> String {
        let how = match self.target.mode {
            Mode::Append => "rows are added".to_owned(),
            Mode::Upsert => format!("rows are replaced by ({})", self.target.key.join(", ")),
            Mode::Overwrite => "each epoch replaces all rows".to_owned(),
        };
        format!(
            "{}, {}, {how}, exactly once by {}",
            self.database.place(),
            self.target.quoted(),
            self.commits.table()
        )
    }
}
