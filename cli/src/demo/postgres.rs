//! A private PostgreSQL: made, filled and thrown away.

use super::process::{Group, Process, private_folder};
use super::toots::Toot;
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use sqlx::postgres::{PgConnection, PgPoolCopyExt, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgPool};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long the server may take to come up.
const START: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Bytes of COPY text sent at a time.
const CHUNK: usize = 1 << 18;

/// Settings of a server whose data nobody will miss: no write waits for the disk.
const SETTINGS: [&str; 9] = [
    "listen_addresses=127.0.0.1",
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_wal_size=4GB",
    "autovacuum=off",
    // Containers have little shared memory, which parallel queries need.
    "max_parallel_workers_per_gather=0",
];

/// The programs and the folder of the server, before it runs.
#[derive(Debug)]
pub struct Installation {
    programs: PathBuf,
    /// Whom the server runs as, if not as us: it refuses to run as root.
    user: Option<User>,
    folder: TempDir,
}

impl Installation {
    /// Finds PostgreSQL and makes a folder for a server's data.
    ///
    /// # Errors
    /// PostgreSQL is not installed; root without a user `postgres`.
    pub fn find() -> Result<Self> {
        let user = match Uid::effective().is_root() {
            true => Some(User::from_name("postgres")?.context(
                "PostgreSQL does not run as root and there is no user postgres: create one, or run the demo as another user",
            )?),
            false => None,
        };
        let folder = private_folder("essaim-demo-postgres-")?;
        if let Some(user) = &user {
            chown(
                folder.path(),
                Some(user.uid.as_raw()),
                Some(user.gid.as_raw()),
            )?;
        }
        Ok(Self {
            programs: programs()?,
            user,
            folder,
        })
    }

    /// Everything that the server writes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.folder());
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }
}

/// The newest installation where Debian keeps them, or the one on the PATH.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let version = |folder: &Path| -> u32 {
        let name = folder.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.parse().ok()).unwrap_or(0)
    };
    let mut versions: Vec<PathBuf> = versions.flatten().map(|entry| entry.path()).collect();
    versions.sort_by_key(|folder| std::cmp::Reverse(version(folder)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    versions
        .into_iter()
        .map(|folder| folder.join("bin"))
        .chain(std::env::split_paths(&path))
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .context("PostgreSQL is not installed: `make demo` installs it, or put initdb and postgres on the PATH")
}

/// A running server. Stops when dropped.
#[derive(Debug)]
pub struct Postgres {
    /// With user and password.
    pub url: String,
    pub port: u16,
    pub version: String,
    pub pool: PgPool,
    _process: Process,
}

impl Postgres {
    /// Makes a server and starts it.
    ///
    /// # Errors
    /// `initdb` fails, or the server does not come up; what they said is in the message.
    pub async fn start(installation: &Installation, group: &Group) -> Result<Self> {
        let folder = installation.folder();
        let data = folder.join("data");
        let password = uuid::Uuid::new_v4().simple().to_string();
        let password_file = folder.join("password");
        std::fs::write(&password_file, format!("{password}\n"))?;
        if let Some(user) = &installation.user {
            chown(
                &password_file,
                Some(user.uid.as_raw()),
                Some(user.gid.as_raw()),
            )?;
        }
        let mut initdb = installation.command("initdb");
        initdb
            .args(["--username=essaim", "--auth=scram-sha-256"])
            .args(["--encoding=UTF8", "--no-locale", "--no-sync"])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg(&data);
        let made = tokio::process::Command::from(initdb)
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot start initdb")?;
        ensure!(
            made.status.success(),
            "initdb in {} failed (TMPDIR puts the folder elsewhere): {}",
            folder.display(),
            String::from_utf8_lossy(&made.stderr)
        );

        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let mut command = installation.command("postgres");
        // Without a Unix socket: its path could be too long.
        command
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-k", ""]);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        // SIGQUIT is its immediate shutdown, which leaves no shared memory behind.
        let mut process = group.spawn("PostgreSQL", command, Signal::SIGQUIT, folder)?;
        let url = format!("postgres://essaim:{password}@127.0.0.1:{port}/postgres");
        if let Err(error) = wait_until_up(&url, &mut process).await {
            return Err(process.explain(error));
        }
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .connect(&url)
            .await?;
        let version = sqlx::query_scalar("SHOW server_version")
            .fetch_one(&pool)
            .await?;
        Ok(Self {
            url,
            port,
            version,
            pool,
            _process: process,
        })
    }

    /// Makes the table `accounts` with `rows` rows.
    ///
    /// # Errors
    /// The server's.
    pub async fn fill_accounts(&self, rows: u64) -> Result<()> {
        self.run(&format!(
            "BEGIN;
             CREATE TABLE accounts (
               id bigint NOT NULL, username text NOT NULL, region text NOT NULL, followers_count bigint NOT NULL
             );
             INSERT INTO accounts
             SELECT id, 'user' || id,
               (ARRAY['Africa', 'Asia', 'Europe', 'North America', 'Oceania', 'South America'])[1 + id * 7 % 6],
               id * 7919 % 10007
             FROM generate_series(1::bigint, {rows}) AS id;
             ALTER TABLE accounts ADD PRIMARY KEY (id);
             COMMIT;
             ANALYZE accounts;"
        ))
        .await
    }

    /// Runs statements and forgets their rows.
    ///
    /// # Errors
    /// The server's.
    pub async fn run(&self, sql: &str) -> Result<()> {
        self.pool
            .execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
            .await
            .with_context(|| format!("PostgreSQL: {sql}"))?;
        Ok(())
    }
}

async fn wait_until_up(url: &str, process: &mut Process) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        match PgConnection::connect(url).await {
            Ok(connection) => return Ok(connection.close().await?),
            Err(_) if process.has_ended()? => bail!("PostgreSQL has ended"),
            Err(error) if Instant::now() > deadline => {
                return Err(anyhow!(error).context(format!(
                    "PostgreSQL has not come up within {} s",
                    START.as_secs()
                )));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// The producer's own record of what it sent, in the table `toots_sent`: what the results are compared with.
pub struct Ledger {
    copy: sqlx::postgres::PgCopyIn<sqlx::pool::PoolConnection<sqlx::Postgres>>,
    buffer: String,
}

impl Ledger {
    /// An empty record.
    ///
    /// # Errors
    /// The server's.
    pub async fn new(postgres: &Postgres) -> Result<Self> {
        postgres
            .run(
                "CREATE UNLOGGED TABLE toots_sent (
                   id bigint, created_at timestamp, language text, length int, tags text[], account_id bigint
                 )",
            )
            .await?;
        Ok(Self {
            copy: postgres
                .pool
                .copy_in_raw("COPY toots_sent FROM STDIN")
                .await?,
            buffer: String::with_capacity(CHUNK + 1024),
        })
    }

    /// Notes a toot.
    ///
    /// # Errors
    /// The server's.
    pub async fn note(&mut self, toot: &Toot) -> Result<()> {
        self.buffer.push_str(&toot.copy_line());
        if self.buffer.len() >= CHUNK {
            self.copy.send(self.buffer.as_bytes()).await?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Ends the record; returns how many toots it holds.
    ///
    /// # Errors
    /// The server's.
    pub async fn finish(mut self) -> Result<u64> {
        self.copy.send(self.buffer.as_bytes()).await?;
        Ok(self.copy.finish().await?)
    }
}
