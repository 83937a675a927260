//! The real PostgreSQL: a database of its own for each test, and a private server for those who kill it.

use crate::certificates::Certificates;
use crate::cluster::Process;
use crate::{SOON, unique, wait_for};
use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, Row, ValueRef};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use url::Url;

/// The shared server, as a URL with user, password and a database to connect to.
pub fn server() -> String {
    std::env::var("ESSAIM_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://essaim:essaim@127.0.0.1:54329/essaim".to_owned())
}

/// The same server, another database.
///
/// # Errors
/// `ESSAIM_TEST_POSTGRES` is no URL.
pub fn url_of(database: &str) -> Result<String> {
    let mut url = Url::parse(&server()).context("ESSAIM_TEST_POSTGRES")?;
    url.set_path(database);
    Ok(url.into())
}

/// A connection to the shared server's own database.
///
/// # Errors
/// The server is not there; says how to start it.
pub async fn maintenance() -> Result<PgConnection> {
    PgConnection::connect(&server()).await.with_context(|| {
        format!(
            "no PostgreSQL at {}: start it with `make services`",
            server()
        )
    })
}

/// A database of one test, dropped at its end.
#[derive(Debug)]
pub struct Database {
    /// Its URL, with user and password: what stands after LOCATION.
    pub url: String,
    /// Its name.
    pub name: String,
    pool: PgPool,
}

impl Database {
    /// Creates an empty database.
    ///
    /// # Errors
    /// The server is not there or refuses.
    pub async fn create() -> Result<Self> {
        let name = unique("essaim_test");
        let mut server = maintenance().await?;
        run(&mut server, &format!("CREATE DATABASE {name}")).await?;
        server.close().await?;
        let url = url_of(&name)?;
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy(&url)?;
        Ok(Self { url, name, pool })
    }

    /// Runs statements and forgets their rows.
    ///
    /// # Errors
    /// The server's.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        run(&mut *self.pool.acquire().await?, sql).await
    }

    /// The rows of a query, each value as PostgreSQL's text.
    ///
    /// # Errors
    /// The server's.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        rows(&mut *self.pool.acquire().await?, sql).await
    }

    /// The one value of a query, as text.
    ///
    /// # Errors
    /// The server's; more or less than one value, or a null.
    pub async fn value(&self, sql: &str) -> Result<String> {
        let mut rows = self.rows(sql).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(mut row), true) if row.len() == 1 => row.pop().flatten(),
            _ => None,
        }
        .with_context(|| format!("{sql} does not give one value"))
    }

    /// Fills a table by COPY with rows in CSV.
    ///
    /// # Errors
    /// The server's.
    pub async fn copy(&self, table: &str, lines: impl Iterator<Item = String>) -> Result<u64> {
        copy(&mut *self.pool.acquire().await?, table, lines).await
    }

    /// A statement that declares `table` of this database to Essaim under `name`; `options` come after the table's.
    pub fn declare(&self, name: &str, table: &str, options: &str) -> String {
        format!(
            "CREATE EXTERNAL TABLE {name} STORED AS POSTGRES LOCATION '{}' OPTIONS (table '{table}'{options});\n",
            self.url
        )
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async { run(&mut maintenance().await?, &sql).await })
        })
        .join();
        if !matches!(dropped, Ok(Ok(()))) {
            eprintln!("database {} stays: {dropped:?}", self.name);
        }
    }
}

/// Runs statements on a connection.
///
/// # Errors
/// The server's.
pub async fn run(connection: &mut PgConnection, sql: &str) -> Result<()> {
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
        .await
        .with_context(|| format!("PostgreSQL: {}", sql.chars().take(500).collect::<String>()))?;
    Ok(())
}

/// The rows of a query on a connection, each value as PostgreSQL's text.
///
/// # Errors
/// The server's.
pub async fn rows(connection: &mut PgConnection, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
    // The simple protocol sends every value as text.
    let rows = connection
        .fetch_all(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
        .await
        .with_context(|| format!("PostgreSQL: {}", sql.chars().take(500).collect::<String>()))?;
    rows.iter().map(texts).collect()
}

fn texts(row: &PgRow) -> Result<Vec<Option<String>>> {
    (0..row.len())
        .map(|column| {
            let value = row.try_get_raw(column)?;
            if value.is_null() {
                return Ok(None);
            }
            let text = value
                .as_str()
                .map_err(|e| anyhow!("column {column}: {e}"))?;
            Ok(Some(text.to_owned()))
        })
        .collect()
}

/// Fills a table by COPY with rows in CSV; returns how many.
///
/// # Errors
/// The server's.
pub async fn copy(
    connection: &mut PgConnection,
    table: &str,
    lines: impl Iterator<Item = String>,
) -> Result<u64> {
    const CHUNK: usize = 1 << 20;
    let mut sink = connection
        .copy_in_raw(&format!("COPY {table} FROM STDIN (FORMAT csv)"))
        .await
        .with_context(|| format!("COPY {table}"))?;
    let mut buffer = String::with_capacity(CHUNK + 1024);
    for line in lines {
        buffer.push_str(&line);
        buffer.push('\n');
        if buffer.len() >= CHUNK {
            sink.send(buffer.as_bytes()).await?;
            buffer.clear();
        }
    }
    sink.send(buffer.as_bytes()).await?;
    sink.finish().await.with_context(|| format!("COPY {table}"))
}

/// A server of one test, which may kill it.
#[derive(Debug)]
pub struct PrivateServer {
    /// The URL of its one database, with user and password.
    pub url: String,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Settings besides the usual ones, `name=value`.
    settings: Vec<String>,
    starts: usize,
    process: Option<Process>,
    // Removed last.
    dir: TempDir,
}

impl PrivateServer {
    /// Makes and starts a server; user and password are `essaim`, and the password is asked for.
    ///
    /// # Errors
    /// PostgreSQL is not installed or does not start.
    pub async fn start() -> Result<Self> {
        Self::start_with(None).await
    }

    /// The same with TLS; [`crate::certificates::USER`] comes in by a certificate alone.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_secured(certificates: &Certificates) -> Result<Self> {
        Self::start_with(Some(certificates)).await
    }

    async fn start_with(certificates: Option<&Certificates>) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("essaim-postgres")
            .tempdir()?;
        let password = dir.path().join("password");
        std::fs::write(&password, "essaim\n")?;
        if let Some(user) = server_user()? {
            for path in [dir.path(), &password] {
                std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            }
        }
        let mut initdb = command("initdb")?;
        initdb
            .args(["-U", "essaim", "-A", "scram-sha-256", "-E", "UTF8"])
            .arg("--no-sync")
            .arg("-D")
            .arg(dir.path().join("data"))
            .arg(format!("--pwfile={}", password.display()))
            .current_dir(dir.path());
        let output = tokio::task::spawn_blocking(move || initdb.output()).await??;
        ensure!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let settings = match certificates {
            Some(certificates) => secure(dir.path(), certificates)?,
            None => Vec::new(),
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let mut server = Self {
            url: format!("postgres://essaim:essaim@127.0.0.1:{port}/postgres"),
            port,
            settings,
            starts: 0,
            process: None,
            dir,
        };
        server.restart()?;
        wait_for("the private PostgreSQL", SOON, async || {
            Ok(Some(server.connect().await?))
        })
        .await
        .with_context(|| {
            std::fs::read_to_string(server.dir.path().join("postgres-1.log")).unwrap_or_default()
        })?;
        Ok(server)
    }

    /// Starts it again after it was killed, at the same port and with the same data. It may not answer yet.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        let mut postgres = command("postgres")?;
        postgres
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .args(["-p", &self.port.to_string(), "-k", ""])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting.as_str()]))
            .current_dir(self.dir.path());
        self.starts += 1;
        let name = format!("postgres-{}", self.starts);
        self.process = Some(Process::spawn(&name, postgres, self.dir.path())?);
        Ok(())
    }

    /// Where it keeps its data and its log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves its folder when it is dropped.
    pub fn keep_dir(&mut self) {
        self.dir.disable_cleanup(true);
    }

    /// A connection to its database.
    ///
    /// # Errors
    /// It is gone.
    pub async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.url).await?)
    }

    /// Kills it with SIGKILL, its backends with it, so that no connection goes on. All of them are gone when this
    /// returns: the next server would not start beside a process that still holds the shared memory of this one.
    ///
    /// # Errors
    /// It was killed before; a backend does not end.
    pub fn kill(&mut self) -> Result<()> {
        let process = self.process.take().context("it was killed before")?;
        let pid = process.pid();
        // So that no backend is born meanwhile.
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGSTOP)?;
        let children = children(pid)?;
        drop(process);
        for child in &children {
            // One that has ended by itself is as good.
            let _ = kill(Pid::from_raw(*child), Signal::SIGKILL);
        }
        let deadline = Instant::now() + SOON;
        while let Some(left) = children.iter().find(|child| is_alive(**child)) {
            ensure!(
                Instant::now() < deadline,
                "process {left} of the server does not end"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        if self.process.is_some() {
            let _ = self.kill();
        }
    }
}

/// Puts certificates where the server wants them. Returns the settings that name them.
fn secure(dir: &Path, certificates: &Certificates) -> Result<Vec<String>> {
    let data = dir.join("data");
    let mut settings = vec!["ssl=on".to_owned()];
    for (setting, from, name) in [
        (
            "ssl_cert_file",
            certificates.certificate("server"),
            "server.pem",
        ),
        ("ssl_key_file", certificates.key("server"), "server.key"),
        ("ssl_ca_file", certificates.certificate("ca"), "ca.pem"),
    ] {
        let file = data.join(name);
        std::fs::copy(from, &file)?;
        std::fs::set_permissions(&file, Permissions::from_mode(0o600))?;
        if let Some(user) = server_user()? {
            std::os::unix::fs::chown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        settings.push(format!("{setting}={name}"));
    }
    let access = data.join("pg_hba.conf");
    let rest = std::fs::read_to_string(&access)?;
    let first = format!(
        "hostssl all {} 127.0.0.1/32 cert\n",
        crate::certificates::USER
    );
    std::fs::write(&access, first + &rest)?;
    Ok(settings)
}

/// Who runs a private server: PostgreSQL refuses to run as root, so it is given a user.
fn server_user() -> Result<Option<User>> {
    match Uid::effective().is_root() {
        true => Ok(Some(
            User::from_name("postgres")?.context("root needs a user postgres")?,
        )),
        false => Ok(None),
    }
}

/// A program of PostgreSQL, to be run by [`server_user`].
fn command(program: &str) -> Result<Command> {
    let mut command = Command::new(installed(program)?);
    if let Some(user) = server_user()? {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(command)
}

/// The state of a process and its parent; `None` if there is no such process.
fn state_and_parent(pid: i32) -> Option<(String, u32)> {
    // "PID (NAME) STATE PARENT …", where the name may hold anything.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut after_name = stat.rsplit(')').next()?.split_whitespace();
    let state = after_name.next()?.to_owned();
    Some((state, after_name.next()?.parse().ok()?))
}

/// Whether a process runs. One that has ended and waits for its parent to notice does not.
fn is_alive(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// The processes whose parent is `parent`, from `/proc/*/stat`.
fn children(parent: u32) -> Result<Vec<i32>> {
    let pids = std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    Ok(pids
        .filter(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent))
        .collect())
}

/// A program of an installed PostgreSQL: on the PATH, or where Debian puts it.
fn installed(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    std::env::split_paths(&path)
        .chain(versions.flatten().map(|version| version.path().join("bin")))
        .map(|folder| folder.join(program))
        .find(|candidate| Path::is_file(candidate))
        .with_context(|| format!("{program} is not installed: `make services` installs PostgreSQL"))
}
