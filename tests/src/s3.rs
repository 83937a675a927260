//! A real server of S3's protocol on loopback: moto, one for a test program, with a bucket for each test.

use crate::cluster::Process;
use crate::{SOON, unique, wait_for};
use anyhow::{Context, Result};
use bytes::Bytes;
use datafusion::object_store::aws::{AmazonS3, AmazonS3Builder};
use datafusion::object_store::path::Path;
use datafusion::object_store::{ObjectStore, ObjectStoreExt};
use futures::{StreamExt, TryStreamExt};
use std::env;
use std::net::SocketAddr;
use std::process::Command;
use tempfile::TempDir;
use tokio::sync::OnceCell;

static SERVER: OnceCell<Server> = OnceCell::const_new();

/// A server, which ends with its owner.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    _process: Process,
    _logs: TempDir,
}

impl Server {
    /// The server that all tests of this program share.
    ///
    /// # Errors
    /// moto is not installed (`scripts/setup`), or does not come up.
    pub async fn shared() -> Result<&'static Self> {
        SERVER.get_or_try_init(|| Self::start(&[])).await
    }

    /// Starts a server with these variables in its environment.
    ///
    /// # Errors
    /// As [`Self::shared`].
    pub async fn start(variables: &[(&str, &str)]) -> Result<Self> {
        let moto = env::var("ESSAIM_TEST_MOTO")
            .context("ESSAIM_TEST_MOTO is not set: run the tests with `make test`")?;
        let logs = TempDir::new()?;
        let mut command = Command::new(moto);
        command
            .args(["-H", "127.0.0.1", "-p", "0"])
            .envs(variables.iter().copied());
        let process = Process::spawn("moto", command, logs.path())?;
        let log = logs.path().join("moto.log");
        let address = wait_for("moto to listen", SOON, async || {
            let log = std::fs::read_to_string(&log)?;
            let line = log
                .lines()
                .find_map(|line| line.split_once("Running on http://"));
            Ok(line.and_then(|(_, address)| address.trim().parse().ok()))
        })
        .await?;
        Ok(Self {
            address,
            _process: process,
            _logs: logs,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new bucket.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn bucket(&self) -> Result<Bucket> {
        let name = unique("bucket").replace('_', "-");
        let endpoint = format!("http://{}", self.address);
        let store = AmazonS3Builder::new()
            .with_bucket_name(&name)
            .with_endpoint(&endpoint)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_access_key_id(KEY)
            .with_secret_access_key(SECRET)
            .build()?;
        let made = crate::http::request(self.address, "PUT", &format!("/{name}")).await?;
        anyhow::ensure!(made.0 == 200, "the bucket was not made: {made:?}");
        Ok(Bucket { name, store })
    }
}

const KEY: &str = "essaim";
const SECRET: &str = "not a secret";

/// What the processes of a cluster need in their environment to reach S3 at `address`.
pub fn variables(address: SocketAddr) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", format!("http://{address}").as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// A bucket and a client of it.
#[derive(Debug)]
pub struct Bucket {
    name: String,
    store: AmazonS3,
}

impl Bucket {
    /// The URL of what is below a path.
    pub fn url(&self, path: &str) -> String {
        format!("s3://{}/{path}", self.name)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes an object.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn put(&self, path: &str, content: impl Into<Bytes>) -> Result<()> {
        self.store
            .put(&Path::from(path), content.into().into())
            .await?;
        Ok(())
    }

    /// Writes many objects, some at a time.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn put_all(&self, objects: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        futures::stream::iter(objects)
            .map(|(path, content)| async move { self.put(&path, content).await })
            .buffer_unordered(8)
            .try_collect()
            .await
    }

    /// The paths below one, and their sizes, sorted.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn list(&self, path: &str) -> Result<Vec<(String, u64)>> {
        let found = self.store.list(Some(&Path::from(path)));
        let mut found: Vec<(String, u64)> = found
            .map_ok(|object| (object.location.to_string(), object.size))
            .try_collect()
            .await?;
        found.sort();
        Ok(found)
    }

    /// The paths below one that readers see: no name begins with `_` or `.`.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn visible(&self, path: &str) -> Result<Vec<(String, u64)>> {
        let mut found = self.list(path).await?;
        found.retain(|(path, _)| !path.split('/').any(|name| name.starts_with(['_', '.'])));
        Ok(found)
    }

    /// The lines of all objects below a path that readers see, without those of their headers.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn records(&self, path: &str) -> Result<Vec<String>> {
        let mut records = Vec::new();
        for (object, _) in self.visible(path).await? {
            let content = self
                .store
                .get(&Path::from(object.as_str()))
                .await?
                .bytes()
                .await?;
            let text = String::from_utf8(content.to_vec())?;
            records.extend(text.lines().skip(1).map(str::to_owned));
        }
        Ok(records)
    }
}
