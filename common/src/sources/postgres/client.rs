//! Connections to PostgreSQL: how they are made, kept warm, given deadlines, and what their errors mean.

use super::tls::{self, connect_options};
use crate::error::{Error, ErrorKind, Result};
use crate::scope::Warm;
use crate::secret::Secret;
use datafusion::execution::TaskContext;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgDatabaseError, PgRow};
use sqlx::{AssertSqlSafe, Connection};
use std::collections::VecDeque;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For a connection to be there and authenticated.
const CONNECT: Duration = Duration::from_secs(10);
/// For a statement that only looks something up or prepares something.
pub const STATEMENT: Duration = Duration::from_secs(60);
/// For the next bytes of a COPY: a view may sort for long before its first row.
pub const COPY: Duration = Duration::from_secs(600);
/// For the transaction that makes a result visible: as long as the server needs to insert all of it.
pub const COMMIT: Duration = Duration::from_secs(6 * 3600);
/// An idle connection older than this is not used again: something on the way may have forgotten it.
pub const IDLE: Duration = Duration::from_secs(120);
/// Idle connections that a process keeps, for all databases together.
const IDLE_CONNECTIONS: usize = 32;

/// A name within SQL text.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text within SQL text, whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// Where a database is and who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Database {
    url: Secret,
}

impl Database {
    /// Checks a LOCATION, `postgres://user:password@host:port/database`.
    ///
    /// # Errors
    /// A text of another form.
    pub fn new(url: Secret) -> Result<Self> {
        connect_options(&url)?;
        Ok(Self { url })
    }

    /// A key for what is kept per database and login; secret.
    pub fn key(&self) -> &str {
        self.url.expose()
    }

    fn options(&self) -> Result<PgConnectOptions> {
        connect_options(&self.url)
    }

    /// For people: `host:port/database`.
    pub fn place(&self) -> String {
        match self.options() {
            Ok(options) => format!(
                "PostgreSQL at {}:{}/{}",
                options.get_host(),
                options.get_port(),
                options
                    .get_database()
                    .unwrap_or_else(|| options.get_username())
            ),
            Err(_) => "PostgreSQL".to_owned(),
        }
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// Out of reach, or refused.
    pub async fn connect(&self) -> Result<Client> {
        let options = self.options()?;
        let place = self.place();
        let connection =
            match tokio::time::timeout(CONNECT, PgConnection::connect_with(&options)).await {
                Ok(connection) => connection.map_err(|e| sql_error(&e, &place))?,
                Err(_) => {
                    return Err(Error::unavailable(format!(
                        "{place} does not answer within {} s",
                        CONNECT.as_secs()
                    )));
                }
            };
        Ok(Client {
            database: self.clone(),
            place,
            connection,
        })
    }

    /// An idle connection of this process, or a new one, on which `first` has been run.
    ///
    /// # Errors
    /// As [`Self::connect`], and those of `first`.
    pub async fn start(&self, ctx: &TaskContext, first: &str) -> Result<Client> {
        let idle = pool(ctx).and_then(|pool| pool.idle.lock().take(self, Instant::now()));
        if let Some(mut client) = idle {
            match client.run(first, STATEMENT).await {
                Ok(_) => return Ok(client),
                // A server that was restarted has closed it: a new one can be made.
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error),
            }
        }
        let mut client = self.connect().await?;
        client.run(first, STATEMENT).await?;
        Ok(client)
    }
}

/// The idle connections of a process. None of them is inside a transaction: a snapshot kept open would hold back
/// the server's VACUUM after the job has ended.
#[derive(Default)]
struct Pool {
    idle: parking_lot::Mutex<Idle<Client>>,
}

/// What lies idle, the longest at the front. Whoever takes or puts something, for whatever database, lets go of what has
/// lain too long.
struct Idle<T>(VecDeque<(Database, T, Instant)>);

impl<T> Default for Idle<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Idle<T> {
    fn take(&mut self, database: &Database, now: Instant) -> Option<T> {
        self.drop_old(now);
        let newest = self.0.iter().rposition(|(of, ..)| of == database)?;
        self.0.remove(newest).map(|(_, kept, _)| kept)
    }

    fn put(&mut self, database: Database, kept: T, now: Instant) {
        self.drop_old(now);
        if self.0.len() == IDLE_CONNECTIONS {
            self.0.pop_front();
        }
        self.0.push_back((database, kept, now));
    }

    fn drop_old(&mut self, now: Instant) {
        let old = |(_, _, since): &(Database, T, Instant)| now.duration_since(*since) >= IDLE;
        while self.0.front().is_some_and(old) {
            self.0.pop_front();
        }
    }
}

fn pool(ctx: &TaskContext) -> Option<Arc<Pool>> {
    let warm = ctx.session_config().get_extension::<Warm>()?;
    Some(warm.of::<Pool>())
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    database: Database,
    place: String,
    connection: PgConnection,
}

impl Client {
    /// For people: which server.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The connection itself, for COPY.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Waits for an answer of the server, so long and no longer.
    ///
    /// # Errors
    /// Of the server, or none within `deadline`.
    pub async fn within<T>(
        place: &str,
        deadline: Duration,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T> {
        match tokio::time::timeout(deadline, answer).await {
            Ok(answer) => answer.map_err(|e| sql_error(&e, place)),
            Err(_) => Err(Error::unavailable(format!(
                "{place} has not answered for {} s",
                deadline.as_secs()
            ))),
        }
    }

    /// Runs statements, separated by semicolons, without rows; returns how many rows they touched.
    ///
    /// # Errors
    /// Of the server.
    pub async fn run(&mut self, sql: impl Into<String>, deadline: Duration) -> Result<u64> {
        let sql = AssertSqlSafe(sql.into());
        let answer = sqlx::raw_sql(sql).execute(&mut self.connection);
        Ok(Self::within(&self.place, deadline, answer)
            .await?
            .rows_affected())
    }

    /// Runs one query. Its parameters are texts `$1`, `$2`, …; a list is not supported.
    ///
    /// # Errors
    /// Of the server.
    pub async fn rows(&mut self, sql: &str, parameters: &[&str]) -> Result<Vec<PgRow>> {
        self.rows_within(sql, parameters, STATEMENT).await
    }

    /// The same for a query that looks at much.
    ///
    /// # Errors
    /// Of the server.
    pub async fn rows_within(
        &mut self,
        sql: &str,
        parameters: &[&str],
        deadline: Duration,
    ) -> Result<Vec<PgRow>> {
        let mut query = sqlx::query(AssertSqlSafe(sql.to_owned()));
        for parameter in parameters {
            query = query.bind(*parameter);
        }
        let answer = query.fetch_all(&mut self.connection);
        Self::within(&self.place, deadline, answer).await
    }

    /// Runs one query with parameters of any types.
    ///
    /// # Errors
    /// Of the server.
    pub async fn rows_with(
        &mut self,
        sql: &str,
        parameters: PgArguments,
        deadline: Duration,
    ) -> Result<Vec<PgRow>> {
        let query = sqlx::query_with(AssertSqlSafe(sql.to_owned()), parameters);
        let answer = query.fetch_all(&mut self.connection);
        Self::within(&self.place, deadline, answer).await
    }

    /// Runs statements, separated by semicolons, in one round trip; returns the rows of all of them, in text form.
    ///
    /// # Errors
    /// Of the server.
    pub async fn raw_rows(&mut self, sql: &str, deadline: Duration) -> Result<Vec<PgRow>> {
        let sql = AssertSqlSafe(sql.to_owned());
        let answer = sqlx::raw_sql(sql).fetch_all(&mut self.connection);
        Self::within(&self.place, deadline, answer).await
    }

    /// Gives the connection back for the next task. It must be outside of any transaction.
    pub fn keep(self, ctx: &TaskContext) {
        let Some(pool) = pool(ctx) else { return };
        let database = self.database.clone();
        pool.idle.lock().put(database, self, Instant::now());
    }
}

/// What an error of the driver means for the job.
pub fn sql_error(error: &sqlx::Error, place: impl Display) -> Error {
    let sqlx::Error::Database(database) = error else {
        return match error {
            sqlx::Error::Configuration(e) => Error::invalid(format!("{place}: {e}")),
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Error::internal(format!("{place}: {error}"))
            }
            error if tls::is_refusal(error) => tls::refused(error, place),
            sqlx::Error::Io(e) => Error::unavailable(format!(
                "{place} is out of reach: {e}. Is it running, and reachable from every worker?"
            )),
            other => Error::unavailable(format!("{place} is out of reach: {other}")),
        };
    };
    let code = database.code().unwrap_or_default().into_owned();
    let kind = match (&code[..2.min(code.len())], code.as_str()) {
        // Rows that the server refuses: a value out of range, a constraint, the same key twice.
        ("21" | "22" | "23", _) => ErrorKind::Data,
        ("0A" | "25" | "28" | "2B" | "3D" | "3F" | "42" | "44", _) => ErrorKind::Invalid,
        (_, "54000" | "54001" | "54011" | "54023") => ErrorKind::Invalid,
        // 40: serialization, deadlock. 53: too many connections, disk full. 57: shutdown, cancelled. 08: broken.
        ("40" | "53" | "57" | "58" | "08" | "55", _) => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let mut message = format!("{place}: {} (SQLSTATE {code})", database.message());
    if let Some(own) = database.try_downcast_ref::<PgDatabaseError>() {
        if let Some(detail) = own.detail() {
            message.push_str(&format!(". {detail}"));
        }
        if let Some(hint) = own.hint() {
            message.push_str(&format!(". {hint}"));
        }
    }
    Error::new(kind, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;

    fn database(name: &str) -> Database {
        Database::new(Secret::new(format!("postgres://u@localhost/{name}"))).unwrap()
    }

    #[test]
    fn idle_connections_of_any_database_go_by_age_and_by_number() {
        let (a, b) = (database("a"), database("b"));
        let start = Instant::now();
        let mut idle = Idle::default();
        idle.put(a.clone(), 1, start);
        idle.put(a.clone(), 2, start);
        assert_eq!(idle.take(&b, start), None);
        assert_eq!(idle.take(&a, start), Some(2), "the newest is the warmest");
        idle.put(b.clone(), 3, start + IDLE);
        assert_eq!(idle.0.len(), 1, "that of the other database was too old");
        for number in 0..100 {
            idle.put(a.clone(), number, start + IDLE);
        }
        assert_eq!(idle.0.len(), IDLE_CONNECTIONS);
        assert_eq!(idle.take(&a, start + IDLE), Some(99));
        assert_eq!(idle.take(&b, start + IDLE), None);
    }
}
