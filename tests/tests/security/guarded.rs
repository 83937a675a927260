//! A master and workers behind certificates and tokens, and clients that show what a test wants them to show.

use crate::certificates::{Authority, Pair};
use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use essaim_common::ipc::Decoder;
use essaim_common::net::tokens::Token;
use essaim_common::net::{Credentials, Identity, Link, link};
use essaim_proto::MAX_MESSAGE_BYTES;
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::query_response::Part;
use essaim_proto::v1::{Job, QueryRequest};
use essaim_tests::cluster::{Process, binary};
use essaim_tests::{LONG, SOON, unique, wait_for};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tonic::Status;

/// The tokens that every guarded cluster knows.
pub const WORKER: &str = "w0rker-token-of-the-tests-4f1c";
pub const SUBMIT: &str = "subm1t-token-of-the-tests-9a70";
pub const READ: &str = "r3ader-token-of-the-tests-77b2";
pub const EXPIRED: &str = "exp1red-token-of-the-tests-0d3e";
/// One that nobody knows.
pub const WRONG: &str = "wr0ng-token-of-the-tests-c5f8";

const CONNECT: Duration = Duration::from_secs(5);

/// How a cluster is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// By tokens alone.
    Tokens,
    /// By tokens, and certificates of both sides.
    MutualTls,
}

/// A running cluster. Its processes end with it.
pub struct Guarded {
    pub dir: PathBuf,
    guard: Guard,
    pub authority: Authority,
    server: Pair,
    pub client: Pair,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub master: Process,
    /// Each with its addresses: gRPC, HTTP.
    pub workers: Vec<(Process, SocketAddr, SocketAddr)>,
}

/// What a server announces: where it serves gRPC and HTTP.
pub fn addresses(line: &str) -> Result<(SocketAddr, SocketAddr)> {
    line.strip_prefix("listening on grpc ")
        .and_then(|rest| rest.split_once(" http "))
        .and_then(|(grpc, http)| Some((grpc.parse().ok()?, http.trim().parse().ok()?)))
        .with_context(|| format!("a server's first line is {line:?}"))
}

fn write(path: &Path, text: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(path.to_owned())
}

/// The tokens file of a cluster.
pub fn tokens() -> String {
    format!(
        "# of a test\nworker workers {WORKER}\nsubmit etl {SUBMIT} 2999-01-01T00:00:00Z\nread eve {READ}\nsubmit old {EXPIRED} 2020-01-01T00:00:00Z\n"
    )
}

/// A new folder for one test's files and logs.
pub fn folder() -> Result<PathBuf> {
    let dir = std::env::temp_dir()
        .join("essaim-tests")
        .join(unique("guarded"));
    std::fs::create_dir_all(dir.join("tmp"))?;
    eprintln!("logs of this test's cluster: {}", dir.display());
    Ok(dir)
}

/// `essaim ROLE` with nothing of the surrounding environment that concerns it.
pub fn command(role: &str, dir: &Path) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.arg(role).env("TMPDIR", dir.join("tmp"));
    for variable in ["ESSAIM_TOKEN", "ESSAIM_TOKENS", "ESSAIM_MASTER"] {
        command.env_remove(variable);
    }
    Ok(command)
}

impl Guarded {
    /// A master with more `flags`, and workers with two slots each that have registered.
    pub async fn start(guard: Guard, workers: usize, flags: &[&str]) -> Result<Self> {
        let dir = folder()?;
        let authority = Authority::new(&dir, "authority")?;
        let (server, client) = (authority.sign("server")?, authority.sign("client")?);
        let mut command = command("master", &dir)?;
        command
            .args([
                "--listen",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--require-auth",
            ])
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg("--tokens")
            .arg(write(&dir.join("tokens"), &tokens())?)
            .args(flags);
        if guard == Guard::MutualTls {
            tls(&mut command, &authority, &server);
        }
        let mut master = Process::spawn("master", command, &dir)?;
        let (grpc, http) = addresses(&master.first_line().await?)?;
        write(&dir.join("worker-token"), WORKER)?;
        let mut cluster = Self {
            dir,
            guard,
            authority,
            server,
            client,
            grpc,
            http,
            master,
            workers: Vec::new(),
        };
        for _ in 0..workers {
            cluster.add_worker().await?;
        }
        wait_for("all workers to register", SOON, async || {
            let (status, body) = cluster.get("/api/v1/cluster", READ).await?;
            let page: Value = serde_json::from_str(&body).with_context(|| format!("{status}"))?;
            let known = page["workers"].as_array().map_or(0, Vec::len);
            Ok((known == workers).then_some(()))
        })
        .await?;
        Ok(cluster)
    }

    async fn add_worker(&mut self) -> Result<()> {
        let name = format!("worker-{}", self.workers.len() + 1);
        let mut command = command("worker", &self.dir)?;
        command
            .args(["--master", &self.url()])
            .args([
                "--listen",
                "127.0.0.1:0",
                "--slots",
                "2",
                "--memory",
                "768MiB",
            ])
            .args(["--http", "127.0.0.1:0"])
            // For its pages.
            .arg("--tokens")
            .arg(self.dir.join("tokens"))
            .arg("--token-file")
            .arg(self.dir.join("worker-token"));
        if self.guard == Guard::MutualTls {
            tls(&mut command, &self.authority, &self.server);
        }
        let mut process = Process::spawn(&name, command, &self.dir)?;
        let (grpc, http) = addresses(&process.first_line().await?)?;
        self.workers.push((process, grpc, http));
        Ok(())
    }

    /// Where the master serves gRPC, as a URL.
    pub fn url(&self) -> String {
        self.url_of(self.grpc)
    }

    /// A listener of this cluster as a URL.
    pub fn url_of(&self, address: SocketAddr) -> String {
        match self.guard {
            Guard::Tokens => format!("http://{address}"),
            Guard::MutualTls => format!("https://{address}"),
        }
    }

    /// The certificates that a client should show and trust.
    pub fn identity(&self) -> Identity {
        identity(&self.authority.certificate, Some(&self.client))
    }

    /// A connection that shows this token, or none.
    pub async fn link(&self, address: SocketAddr, token: &str) -> Result<Link> {
        connect(&self.url_of(address), &self.identity(), token).await
    }

    /// The master's `essaim.v1.Jobs`.
    pub async fn jobs(&self, token: &str) -> Result<JobsClient<Link>> {
        Ok(JobsClient::new(self.link(self.grpc, token).await?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The rows of a query, and the job as it stood last.
    pub async fn query(&self, token: &str, sql: &str) -> Result<(Vec<RecordBatch>, Job)> {
        query(&mut self.jobs(token).await?, sql).await
    }

    /// Status and body of a page.
    pub async fn get(&self, path: &str, token: &str) -> Result<(u16, String)> {
        let authorization = match token {
            "" => String::new(),
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        let (status, _, body) = self.request(path, &authorization).await?;
        Ok((status, body))
    }

    /// Status, headers and body of a page.
    pub async fn request(&self, path: &str, headers: &str) -> Result<(u16, String, String)> {
        let identity = (self.guard == Guard::MutualTls).then(|| self.identity());
        crate::raw::get(self.http, identity.as_ref(), path, headers).await
    }

    /// All that the processes have written.
    pub fn written(&self) -> Result<String> {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if matches!(
                path.extension().and_then(|e| e.to_str()),
                Some("log" | "out")
            ) {
                text += &std::fs::read_to_string(path)?;
            }
        }
        Ok(text)
    }
}

fn tls(command: &mut Command, authority: &Authority, pair: &Pair) {
    command
        .arg("--tls-cert")
        .arg(&pair.cert)
        .arg("--tls-key")
        .arg(&pair.key)
        .arg("--tls-ca")
        .arg(&authority.certificate)
        .arg("--tls-client-ca")
        .arg(&authority.certificate);
}

/// Trusts `ca` and shows `own`.
pub fn identity(ca: &Path, own: Option<&Pair>) -> Identity {
    Identity {
        ca: Some(ca.to_owned()),
        cert: own.map(|pair| pair.cert.clone()),
        key: own.map(|pair| pair.key.clone()),
        token: None,
    }
}

/// A connection to `url` that shows this token, or none.
pub async fn connect(url: &str, identity: &Identity, token: &str) -> Result<Link> {
    let channel = link::endpoint(url, identity, CONNECT)?.connect().await?;
    let credentials = match token {
        "" => Credentials::Nothing,
        token => Credentials::Token(Token::new(token)?),
    };
    Ok(Link::new(channel, credentials))
}

/// The rows of a query, and the job as it stood last.
pub async fn query(jobs: &mut JobsClient<Link>, sql: &str) -> Result<(Vec<RecordBatch>, Job)> {
    let request = QueryRequest {
        setup: Vec::new(),
        sql: sql.to_owned(),
        progress: true,
    };
    let run = async {
        let mut parts = jobs.query(request).await?.into_inner();
        let (mut decoder, mut batches, mut last) = (Decoder::default(), Vec::new(), Job::default());
        while let Some(part) = parts.message().await? {
            match part.part.context("an empty part")? {
                Part::ArrowIpc(chunk) => batches.extend(decoder.decode(chunk)?),
                Part::Progress(job) => last = job,
            }
        }
        anyhow::Ok((batches, last))
    };
    tokio::time::timeout(LONG, run).await?
}

/// How a call failed.
pub fn refusal<T: std::fmt::Debug>(call: Result<T, Status>) -> Result<Status> {
    match call {
        Ok(answer) => anyhow::bail!("it was let pass: {answer:?}"),
        Err(status) => Ok(status),
    }
}
