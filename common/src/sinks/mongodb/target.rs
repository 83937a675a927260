//! The collection that is written: what it needs, and requests that may be repeated.

use super::{Mode, MongoSink, encode};
use crate::error::{Error, Result};
use crate::sources::mongodb::client::{Connected, SCAN, STATEMENT};
use crate::sources::mongodb::refusal::{check_writes, driver_error, duplicates};
use crate::sql_types::sql_type;
use arrow::datatypes::{DataType, SchemaRef};
use futures::TryStreamExt;
use mongodb::IndexModel;
use mongodb::bson::{self, Bson, Document, doc};
use mongodb::options::IndexOptions;
use sha2::{Digest, Sha256};

/// Documents and bytes of one request. The server takes 16 MiB of updates at a time.
const CHUNK_DOCUMENTS: usize = 1_000;
const CHUNK_BYTES: usize = 8 * 1024 * 1024;

/// Upserts of one key that happen at once: the server refuses all but one, and they are sent again.
const RACES: usize = 5;

/// The collection, checked.
#[derive(Debug, Clone)]
pub struct Target {
    pub collection: String,
    pub mode: Mode,
    pub key: Vec<String>,
    /// Whether it was there when the job was planned.
    exists: bool,
}

/// Documents for one request: for an append as they will be, for an upsert the updates.
#[derive(Debug, Default)]
pub struct Chunk {
    documents: Vec<Document>,
    bytes: usize,
}

impl Chunk {
    /// Adds a document of so many bytes.
    pub fn push(&mut self, document: Document, bytes: usize) {
        self.documents.push(document);
        self.bytes += bytes;
    }

    /// Whether a document of so many bytes should come into the next one.
    pub fn is_full(&self, bytes: usize) -> bool {
        !self.is_empty()
            && (self.documents.len() >= CHUNK_DOCUMENTS || self.bytes + bytes > CHUNK_BYTES)
    }

    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// What has been added, as it is sent.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }
}

/// A document as bytes.
///
/// # Errors
/// One that BSON cannot hold.
pub fn bytes(document: &Document) -> Result<Vec<u8>> {
    document
        .to_vec()
        .map_err(|e| Error::data(format!("a row does not make a document: {e}")))
}

/// 128 bits that tell documents apart.
pub fn digest(bytes: &[u8]) -> u128 {
    let digest = Sha256::digest(bytes);
    digest
        .iter()
        .take(16)
        .fold(0, |number, byte| number << 8 | u128::from(*byte))
}

impl Target {
    /// Looks at the collection that is there, or thinks of the one that will be.
    ///
    /// # Errors
    /// Columns that do not fit, a missing unique index.
    pub async fn plan(sink: &MongoSink, input: &SchemaRef) -> Result<Self> {
        encode::check(input)?;
        let name = &sink.collection;
        let key = match sink.mode {
            Mode::Append => Vec::new(),
            Mode::Upsert => sink.key.clone(),
        };
        for column in &key {
            let Ok(field) = input.field_with_name(column) else {
                let names: Vec<&str> = input.fields().iter().map(|f| f.name().as_str()).collect();
                return Err(Error::invalid(format!(
                    "the key column {column} is missing among the rows' columns {}",
                    names.join(", ")
                )));
            };
            if field.data_type().is_nested() || *field.data_type() == DataType::Null {
                return Err(Error::invalid(format!(
                    "the key column {column} is {}: a key is made of single values",
                    sql_type(field.data_type())
                )));
            }
        }
        if key == ["_id"] && input.fields().len() == 1 {
            return Err(Error::invalid(
                "there is nothing to write beside the key _id",
            ));
        }
        let connected = sink.database.open().await?;
        if encode::has_decimals(input) && connected.version().await?.starts_with("FerretDB v1") {
            return Err(Error::invalid(format!(
                "{} is FerretDB 1, which has no decimals: CAST them to DOUBLE or VARCHAR",
                connected.place
            )));
        }
        let found = connected.find_collection(name).await?;
        if let Some(found) = &found {
            if found.kind != "collection" {
                return Err(Error::invalid(format!(
                    "{name} is a {}, and only a collection can be written so that a repetition changes nothing",
                    found.kind
                )));
            }
            if found.has_collation && sink.mode == Mode::Append {
                return Err(Error::invalid(format!(
                    "collection {name} has a collation, and mode 'append' needs _ids that are compared by their bytes: \
                     use mode 'upsert', or a collection without"
                )));
            }
        }
        let target = Self {
            collection: name.clone(),
            mode: sink.mode,
            key,
            exists: found.is_some(),
        };
        if target.exists && target.needs_index() && !target.has_index(&connected).await? {
            return Err(Error::invalid(format!(
                "mode 'upsert' needs a unique index on exactly the key: db.getCollection({name:?}).createIndex({}, {{ unique: true }})",
                Bson::Document(target.index_keys()).into_relaxed_extjson()
            )));
        }
        Ok(target)
    }

    fn needs_index(&self) -> bool {
        self.mode == Mode::Upsert && self.key != ["_id"]
    }

    fn index_keys(&self) -> Document {
        self.key
            .iter()
            .map(|name| (name.clone(), Bson::Int32(1)))
            .collect()
    }

    async fn has_index(&self, connected: &Connected) -> Result<bool> {
        let collection = connected.collection(&self.collection);
        let indexes = async { collection.list_indexes().await?.try_collect().await };
        let indexes: Vec<IndexModel> = connected.within(STATEMENT, indexes).await?;
        Ok(indexes.iter().any(|index| {
            let keys = &index.keys;
            let options = index.options.as_ref();
            let is_whole = options.is_some_and(|options| {
                options.unique == Some(true)
                    && options.partial_filter_expression.is_none()
                    && options.sparse != Some(true)
            });
            is_whole
                && keys.len() == self.key.len()
                && self.key.iter().all(|name| keys.contains_key(name))
        }))
    }

    /// Creates what an upsert needs, unless it was there. An append creates the collection with its first document.
    ///
    /// # Errors
    /// Of the server.
    pub async fn create(&self, connected: &Connected) -> Result<()> {
        if self.exists || !self.needs_index() {
            return Ok(());
        }
        let options = IndexOptions::builder().unique(true).build();
        let index = IndexModel::builder()
            .keys(self.index_keys())
            .options(options)
            .build();
        let collection = connected.collection(&self.collection);
        connected
            .within(SCAN, collection.create_index(index))
            .await?;
        Ok(())
    }

    /// A row as the document of an append.
    ///
    /// # Errors
    /// It brings an `_id`.
    pub fn appended(&self, mut row: Document, id: String) -> Result<Document> {
        self.take_null_id(&mut row)?;
        let mut document = doc! { "_id": id };
        document.extend(row);
        Ok(document)
    }

    /// A row as the update of an upsert, and the query that finds what it replaces.
    ///
    /// # Errors
    /// A key that is null; an `_id` that is none of the key.
    pub fn update(&self, mut row: Document) -> Result<(Document, Document)> {
        let mut query = Document::new();
        for name in &self.key {
            match row.get(name) {
                None | Some(Bson::Null) => {
                    return Err(Error::data(format!(
                        "the key column {name} is NULL: a key must have a value. Filter with WHERE {name} IS NOT NULL"
                    )));
                }
                Some(value) => query.insert(name.clone(), value.clone()),
            };
        }
        if self.key.iter().any(|name| name == "_id") {
            row.remove("_id");
        } else {
            self.take_null_id(&mut row)?;
        }
        // Of a unique key `multi` is one document. FerretDB keeps a connection to PostgreSQL for every update of a request
        // that stops at its first match, until the request ends: with many of them it waits for itself for ever.
        let update =
            doc! { "q": query.clone(), "u": { "$set": row }, "upsert": true, "multi": true };
        Ok((update, query))
    }

    fn take_null_id(&self, row: &mut Document) -> Result<()> {
        match row.remove("_id") {
            None | Some(Bson::Null) => Ok(()),
            Some(_) => Err(Error::data(match self.mode {
                Mode::Append => {
                    "mode 'append' makes each document's _id itself: leave the column _id out of the SELECT, \
                     or set mode 'upsert' and key '_id'"
                }
                Mode::Upsert => {
                    "the server makes each document's _id, because the key is another: leave the column _id out of the SELECT"
                }
            })),
        }
    }

    /// The error of a key that comes twice.
    pub fn repeated(&self, query: &Document) -> Error {
        Error::data(format!(
            "the key ({}) = {} comes more than once among the rows to be written: group the query by the key, or choose \
             one row of each",
            self.key.join(", "),
            Bson::Document(query.clone()).into_relaxed_extjson()
        ))
    }

    /// Sends a chunk. May be repeated: what is there already stays as it is, or takes the same values again.
    ///
    /// # Errors
    /// Of the server; a document that another unique index refuses.
    pub async fn send(&self, connected: &Connected, chunk: &Chunk) -> Result<()> {
        match self.mode {
            Mode::Append => self.insert(connected, &chunk.documents).await,
            Mode::Upsert => self.upsert(connected, &chunk.documents).await,
        }
    }

    async fn insert(&self, connected: &Connected, documents: &[Document]) -> Result<()> {
        let collection = connected.collection(&self.collection);
        let insert = collection.insert_many(documents).ordered(false);
        let error = match connected.attempt(SCAN, insert).await? {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let refused = || driver_error(&error, &connected.place);
        let Some(positions) = duplicates(&error) else {
            return Err(refused());
        };
        // Either an earlier attempt has written them, or another unique index of the collection is in the way.
        let ids: Vec<&Bson> = positions
            .iter()
            .filter_map(|at| documents.get(*at)?.get("_id"))
            .collect();
        let there = collection
            .find(doc! { "_id": { "$in": ids.clone() } })
            .projection(doc! { "_id": 1 });
        let there = async { there.await?.try_collect::<Vec<Document>>().await };
        let there = connected.within(SCAN, there).await?.len();
        match there == ids.len() {
            true => Ok(()),
            false => {
                Err(refused().with_hint("another unique index of the collection refuses the row"))
            }
        }
    }

    async fn upsert(&self, connected: &Connected, updates: &[Document]) -> Result<()> {
        let mut command = doc! {
            "update": self.collection.as_str(),
            "updates": updates,
            "ordered": false,
        };
        // A command of one's own does not get the client's.
        if let Some(concern) = connected.database.write_concern() {
            let concern = bson::serialize_to_bson(concern)
                .map_err(|e| Error::internal(format!("a write concern: {e}")))?;
            command.insert("writeConcern", concern);
        }
        let mut last = Error::internal("nothing was tried");
        for _ in 0..RACES {
            let update = connected.database.run_command(command.clone());
            let answer = connected.within(SCAN, update).await?;
            match check_writes(&answer, &connected.place) {
                // Somebody else has inserted the key in the same moment: it is there to be updated now.
                Err(error) if error.kind() == crate::error::ErrorKind::Data => last = error,
                done => return done,
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;

    fn target(mode: Mode, key: &[&str]) -> Target {
        Target {
            collection: "c".to_owned(),
            mode,
            key: key.iter().map(|&name| name.to_owned()).collect(),
            exists: true,
        }
    }

    #[test]
    fn an_upsert_finds_by_its_key_and_sets_all_columns() {
        let by_city = target(Mode::Upsert, &["city", "at"]);
        let (update, query) = by_city
            .update(doc! { "_id": Bson::Null, "city": "Lyon", "at": 1, "t": 3.5 })
            .unwrap();
        assert_eq!(query, doc! { "city": "Lyon", "at": 1 });
        assert_eq!(
            update,
            doc! {
                "q": { "city": "Lyon", "at": 1 },
                "u": { "$set": { "city": "Lyon", "at": 1, "t": 3.5 } },
                "upsert": true,
                "multi": true,
            }
        );
        let by_id = target(Mode::Upsert, &["_id"]);
        let (update, _) = by_id.update(doc! { "_id": 7, "t": 3.5 }).unwrap();
        assert_eq!(
            update,
            doc! { "q": { "_id": 7 }, "u": { "$set": { "t": 3.5 } }, "upsert": true, "multi": true }
        );
        for row in [
            doc! { "city": Bson::Null, "at": 1 },
            doc! { "_id": 1, "city": "x", "at": 1 },
        ] {
            assert!(by_city.update(row).is_err());
        }
    }

    #[test]
    fn an_append_gives_the_id_and_takes_none() {
        let append = target(Mode::Append, &[]);
        let document = append.appended(doc! { "t": 1, "_id": Bson::Null }, "x".to_owned());
        assert_eq!(document.unwrap(), doc! { "_id": "x", "t": 1 });
        let message = append
            .appended(doc! { "_id": 1 }, "x".to_owned())
            .unwrap_err();
        assert!(message.to_string().contains("key '_id'"), "{message}");
    }

    #[test]
    fn a_chunk_is_full_by_number_or_by_bytes() {
        let mut chunk = Chunk::default();
        assert!(!chunk.is_full(usize::MAX / 2), "one document always fits");
        chunk.push(Document::new(), CHUNK_BYTES);
        assert!(chunk.is_full(1));
        let mut chunk = Chunk::default();
        for _ in 0..CHUNK_DOCUMENTS {
            assert!(!chunk.is_full(1));
            chunk.push(Document::new(), 1);
        }
        assert!(chunk.is_full(1));
    }
}
