//! Connections to MongoDB: how they are made, kept warm and given deadlines.

use super::location::{self, Place};
use super::refusal::{driver_error, is_not_implemented};
use crate::error::{Error, Result};
use crate::scope::Warm;
use crate::secret::Secret;
use datafusion::execution::TaskContext;
use futures::TryStreamExt;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::options::{
    Acknowledgment, ClientOptions, CollectionOptions, ReadPreference, SelectionCriteria,
};
use mongodb::{Client, Collection};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// For a server to be found, and for a connection to it.
const CONNECT: Duration = Duration::from_secs(10);
/// For a command that looks something up, or writes a few documents.
pub const STATEMENT: Duration = Duration::from_secs(60);
/// For the next documents of a cursor, and for what may go through a whole collection.
pub const SCAN: Duration = Duration::from_secs(600);
/// Connections that one process opens to a server.
const CONNECTIONS: u32 = 32;
/// Clients that a worker keeps between tasks. Each holds connections and watches its servers.
const WARM_CLIENTS: usize = 8;
/// A client that no task has taken for so long is closed.
const IDLE: Duration = Duration::from_secs(120);

/// A database: where it is and who asks.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "Secret", into = "Secret")]
pub struct Database {
    url: Secret,
    client: Arc<OnceCell<Client>>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({})", self.url)
    }
}

impl From<Secret> for Database {
    fn from(url: Secret) -> Self {
        Self {
            url,
            client: Arc::default(),
        }
    }
}

impl From<Database> for Secret {
    fn from(database: Database) -> Self {
        database.url
    }
}

impl Database {
    /// Checks a LOCATION, `mongodb://user:password@host:port/database?parameters`.
    ///
    /// # Errors
    /// A text of another form, no database in it, a parameter that no job may give.
    pub fn new(url: Secret) -> Result<Self> {
        location::check(&url)?;
        Ok(Self::from(url))
    }

    /// For people: `MongoDB at host:port/database`.
    pub fn place(&self) -> String {
        match location::check(&self.url) {
            Ok(Place { hosts, database }) => format!("MongoDB at {hosts}/{database}"),
            Err(_) => "MongoDB".to_owned(),
        }
    }

    /// Connects at the first call. A connection is opened when it is first needed.
    ///
    /// # Errors
    /// A location that jobs may not name here; for `mongodb+srv://`, names that cannot be looked up.
    pub async fn open(&self) -> Result<Connected> {
        // Again, on every process for itself: files are where it is.
        let found = location::check(&self.url)?;
        let client = self.client.get_or_try_init(|| self.client()).await?;
        Ok(Connected {
            database: client.database(&found.database),
            place: format!("MongoDB at {}/{}", found.hosts, found.database),
        })
    }

    /// As [`Self::open`], by a client that this process keeps between tasks.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_warm(&self, ctx: &TaskContext) -> Result<Connected> {
        let Some(warm) = ctx.session_config().get_extension::<Warm>() else {
            return self.open().await;
        };
        let kept = warm
            .of::<Clients>()
            .0
            .lock()
            .take(self.url.expose(), Instant::now());
        kept.unwrap_or_else(|| self.clone()).open().await?;
        let kept = warm.of::<Clients>().0.lock().keep(self, Instant::now());
        kept.open().await
    }

    async fn client(&self) -> Result<Client> {
        let place = self.place();
        let options = within(&place, CONNECT, ClientOptions::parse(self.url.expose()));
        let mut options = options.await?;
        options.app_name.get_or_insert_with(|| "essaim".to_owned());
        options.connect_timeout.get_or_insert(CONNECT);
        options.server_selection_timeout.get_or_insert(CONNECT);
        options.max_pool_size.get_or_insert(CONNECTIONS);
        // A write that a new primary could lose is none: commits are built on them.
        let mut concern = options.write_concern.take().unwrap_or_default();
        concern.w.get_or_insert(Acknowledgment::Majority);
        concern.w_timeout.get_or_insert(STATEMENT);
        options.write_concern = Some(concern);
        Client::with_options(options).map_err(|e| driver_error(&e, &place))
    }
}

/// The clients that a worker keeps.
#[derive(Default)]
struct Clients(parking_lot::Mutex<Kept>);

/// Databases with open clients, the one used longest ago at the front.
#[derive(Default)]
struct Kept(VecDeque<(Database, Instant)>);

impl Kept {
    fn take(&mut self, url: &str, now: Instant) -> Option<Database> {
        while self
            .0
            .front()
            .is_some_and(|(_, since)| now.duration_since(*since) >= IDLE)
        {
            self.0.pop_front();
        }
        let known = self.0.iter().find(|(kept, _)| kept.url.expose() == url);
        known.map(|(kept, _)| kept.clone())
    }

    /// Keeps a database unless there is one of the same URL; returns that which is kept.
    fn keep(&mut self, database: &Database, now: Instant) -> Database {
        let known = self.0.iter().position(|(kept, _)| kept.url == database.url);
        let kept = match known.and_then(|at| self.0.remove(at)) {
            Some((kept, _)) => kept,
            None => database.clone(),
        };
        if self.0.len() == WARM_CLIENTS {
            self.0.pop_front();
        }
        self.0.push_back((kept.clone(), now));
        kept
    }
}

/// What is known of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// "collection", "view" or "timeseries".
    pub kind: String,
    /// Whether its texts are compared by the rules of a language.
    pub has_collation: bool,
}

/// A database that can be asked.
#[derive(Clone)]
pub struct Connected {
    pub database: mongodb::Database,
    /// For people: which server and database.
    pub place: String,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connected({})", self.place)
    }
}

impl Connected {
    /// A collection to be read from where LOCATION says, whose documents come as bytes.
    pub fn raw(&self, name: &str) -> Collection<RawDocumentBuf> {
        self.database.collection(name)
    }

    /// A collection of documents to be written, and read as it stands on the primary.
    pub fn collection(&self, name: &str) -> Collection<Document> {
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let options = CollectionOptions::builder()
            .selection_criteria(primary)
            .build();
        self.database.collection_with_options(name, options)
    }

    /// Runs something of the driver's, so long and no longer.
    ///
    /// # Errors
    /// Of the server, or no answer within `deadline`.
    pub async fn within<T>(
        &self,
        deadline: Duration,
        work: impl IntoFuture<Output = mongodb::error::Result<T>>,
    ) -> Result<T> {
        within(&self.place, deadline, work).await
    }

    /// The same for whoever looks at the driver's error.
    ///
    /// # Errors
    /// No answer within `deadline`.
    pub async fn attempt<T>(
        &self,
        deadline: Duration,
        work: impl IntoFuture<Output = mongodb::error::Result<T>>,
    ) -> Result<mongodb::error::Result<T>> {
        let answer = tokio::time::timeout(deadline, work.into_future()).await;
        answer.map_err(|_| silent(&self.place, deadline))
    }

    /// Runs one command and returns the server's answer.
    ///
    /// # Errors
    /// Of the server.
    pub async fn command(&self, command: Document) -> Result<Document> {
        self.within(STATEMENT, self.database.run_command(command))
            .await
    }

    /// The collection of a name, if there is one.
    ///
    /// # Errors
    /// Of the server.
    pub async fn find_collection(&self, name: &str) -> Result<Option<Found>> {
        // Only what is asked for: servers say more of a collection than the driver can read.
        let list = doc! { "listCollections": 1, "filter": { "name": name } };
        let answer = self.command(list).await?;
        let cursor = answer.get_document("cursor");
        let batch = cursor.and_then(|cursor| cursor.get_array("firstBatch"));
        let found = batch.ok().and_then(|batch| batch.first()?.as_document());
        Ok(found.map(|found| Found {
            kind: found.get_str("type").unwrap_or("collection").to_owned(),
            has_collation: found
                .get_document("options")
                .is_ok_and(|options| options.contains_key("collation")),
        }))
    }

    /// The names of all collections.
    ///
    /// # Errors
    /// Of the server.
    pub async fn names(&self) -> Result<Vec<String>> {
        self.within(STATEMENT, self.database.list_collection_names())
            .await
    }

    /// Random documents, at most `size`, with these fields of theirs; `None` where the server does not know `$sample`.
    ///
    /// # Errors
    /// Of the server.
    pub async fn sample(
        &self,
        name: &str,
        size: usize,
        stages: Vec<Document>,
    ) -> Result<Option<Vec<RawDocumentBuf>>> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let mut pipeline = vec![doc! { "$sample": { "size": size } }];
        pipeline.extend(stages);
        let collection = self.raw(name);
        let documents = self.attempt(SCAN, async {
            let cursor = collection
                .aggregate(pipeline)
                .with_type::<RawDocumentBuf>()
                .await?;
            cursor.try_collect().await
        });
        match documents.await? {
            Ok(documents) => Ok(Some(documents)),
            Err(error) if is_not_implemented(&error) => Ok(None),
            Err(error) => Err(driver_error(&error, &self.place)),
        }
    }

    /// The version, in a few words; FerretDB says that it is that.
    ///
    /// # Errors
    /// Of the server.
    pub async fn version(&self) -> Result<String> {
        let answer = self.command(doc! { "buildInfo": 1 }).await?;
        let version = answer.get_str("version").unwrap_or("of unknown version");
        Ok(match answer.get_str("ferretdbVersion") {
            Ok(ferret) => format!("FerretDB {ferret}, speaking as MongoDB {version}"),
            Err(_) => format!("MongoDB {version}"),
        })
    }
}

async fn within<T>(
    place: &str,
    deadline: Duration,
    work: impl IntoFuture<Output = mongodb::error::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(deadline, work.into_future()).await {
        Ok(answer) => answer.map_err(|e| driver_error(&e, place)),
        Err(_) => Err(silent(place, deadline)),
    }
}

fn silent(place: &str, deadline: Duration) -> Error {
    Error::unavailable(format!(
        "{place} has not answered for {} s",
        deadline.as_secs()
    ))
}
