//! The server that speaks as MongoDB: a database of its own for each test, and a private server for those who kill it.

use crate::cluster::Process;
use crate::{SOON, postgres, unique, wait_for};
use anyhow::{Context, Result};
use futures::TryStreamExt;
use mongodb::bson::{Document, doc};
use mongodb::{Client, Collection};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;
use url::Url;

/// Documents that are inserted by one request.
const AT_ONCE: usize = 5_000;

/// The shared server, as a URL with user, password and whatever parameters it needs.
pub fn server() -> String {
    std::env::var("ESSAIM_TEST_MONGODB").unwrap_or_else(|_| {
        "mongodb://essaim:essaim@127.0.0.1:29017/test?authMechanism=PLAIN".to_owned()
    })
}

/// A database of one test, dropped at its end.
#[derive(Debug)]
pub struct Database {
    /// Its URL, with user and password: what stands after LOCATION.
    pub url: String,
    /// Its name.
    pub name: String,
    client: Client,
}

impl Database {
    /// An empty database on the shared server.
    ///
    /// # Errors
    /// `ESSAIM_TEST_MONGODB` is no URL.
    pub async fn create() -> Result<Self> {
        Self::create_at(&server()).await
    }

    /// The same on another server.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn create_at(server: &str) -> Result<Self> {
        let name = unique("essaim_test");
        let mut url = Url::parse(server).context("ESSAIM_TEST_MONGODB")?;
        url.set_path(&name);
        Ok(Self {
            client: Client::with_uri_str(&url).await?,
            url: url.into(),
            name,
        })
    }

    /// A collection of it.
    pub fn collection(&self, name: &str) -> Collection<Document> {
        self.client.database(&self.name).collection(name)
    }

    /// Inserts documents.
    ///
    /// # Errors
    /// The server's, or none is there; says how to start it.
    pub async fn insert(
        &self,
        collection: &str,
        documents: impl IntoIterator<Item = Document>,
    ) -> Result<()> {
        let documents: Vec<Document> = documents.into_iter().collect();
        for chunk in documents.chunks(AT_ONCE) {
            self.collection(collection)
                .insert_many(chunk)
                .await
                .with_context(|| {
                    format!("no MongoDB at {}? `make services` starts it", self.url)
                })?;
        }
        Ok(())
    }

    /// All documents of a collection that a query finds.
    ///
    /// # Errors
    /// The server's.
    pub async fn find(&self, collection: &str, query: Document) -> Result<Vec<Document>> {
        let found = self.collection(collection).find(query).await?;
        Ok(found.try_collect().await?)
    }

    /// All documents of a collection.
    ///
    /// # Errors
    /// The server's.
    pub async fn all(&self, collection: &str) -> Result<Vec<Document>> {
        self.find(collection, doc! {}).await
    }

    /// The names of its collections, in order.
    ///
    /// # Errors
    /// The server's.
    pub async fn collections(&self) -> Result<Vec<String>> {
        let database = self.client.database(&self.name);
        let mut names = database.list_collection_names().await?;
        names.sort();
        Ok(names)
    }

    /// A statement that declares a collection to Essaim under `name`; `columns` in parentheses or empty, `options` come
    /// after the collection's.
    pub fn declare(&self, name: &str, columns: &str, collection: &str, options: &str) -> String {
        format!(
            "CREATE EXTERNAL TABLE {name} {columns} STORED AS MONGODB LOCATION '{}' \
             OPTIONS (collection '{collection}'{options});\n",
            self.url
        )
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (url, name) = (self.url.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let client = Client::with_uri_str(url).await?;
                anyhow::Ok(client.database(&name).drop().await?)
            })
        })
        .join();
        if !matches!(dropped, Ok(Ok(()))) {
            eprintln!("database {} stays: {dropped:?}", self.name);
        }
    }
}

/// A FerretDB of one test, which may kill it. Its documents are where those of the shared one are.
#[derive(Debug)]
pub struct PrivateServer {
    /// As [`server`].
    pub url: String,
    port: u16,
    starts: usize,
    process: Option<Process>,
    dir: TempDir,
}

impl PrivateServer {
    /// Starts a server.
    ///
    /// # Errors
    /// FerretDB is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let mut server = Self {
            url: format!("mongodb://essaim:essaim@127.0.0.1:{port}/test?authMechanism=PLAIN"),
            port,
            starts: 0,
            process: None,
            dir: tempfile::Builder::new()
                .prefix("essaim-mongodb")
                .tempdir()?,
        };
        server.restart().await?;
        Ok(server)
    }

    /// Starts it again after it was killed, at the same port and with the same documents.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        let program = std::env::var_os("ESSAIM_TEST_FERRETDB").map_or_else(
            || {
                let home = std::env::var_os("HOME").unwrap_or_default();
                PathBuf::from(home).join(".cache/essaim/tools/bin/ferretdb-v1.24.0")
            },
            PathBuf::from,
        );
        let documents = postgres::url_of("ferretdb")?;
        let mut command = Command::new(program);
        command
            .arg(format!("--listen-addr=127.0.0.1:{}", self.port))
            .arg(format!("--postgresql-url={documents}?pool_max_conns=5"))
            .arg(format!("--state-dir={}", self.dir.path().display()))
            .args(["--debug-addr=-", "--telemetry=disable", "--log-level=warn"]);
        self.starts += 1;
        let name = format!("ferretdb-{}", self.starts);
        self.process = Some(Process::spawn(&name, command, self.dir.path())?);
        let client = Client::with_uri_str(&self.url).await?;
        wait_for("the private FerretDB", SOON, async || {
            let admin = client.database("admin");
            Ok(Some(admin.run_command(doc! { "ping": 1 }).await?))
        })
        .await?;
        Ok(())
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }
}
