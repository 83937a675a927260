//! `STORED AS MONGODB`: collections of a MongoDB server, read in ranges of `_id`, written so that a repetition changes
//! nothing.
//!
//! The row's way: [`source`] takes filters ([`filter`]) and cuts the collection ([`split`]); on a worker the [`reader`]
//! fetches one range and the [`decode`]r makes Arrow of it. Columns that are not declared come from a sample ([`infer`]).
//! The way back is in [`crate::sinks::mongodb`].

mod cells;
pub(crate) mod client;
pub mod decode;
mod filter;
pub mod infer;
pub(crate) mod location;
mod reader;
pub(crate) mod refusal;
mod source;
mod split;

use crate::check::Endpoint;
use crate::connector::{Connector, ConnectorTable, SinkWriter, SplitReader, TableSpec};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::sinks::mongodb::{Mode, MongoSink, writer::Writer};
use crate::sql_types::sql_type;
use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use client::{Connected, Database, SCAN};
use futures::TryStreamExt;
use mongodb::bson::{RawDocumentBuf, doc};
use reader::OnError;
use source::MongoSource;
use std::sync::Arc;
use std::time::Duration;

/// Documents that are looked at for the columns, as in MongoDB's own connector for Spark.
const SAMPLE_SIZE: usize = 1_000;
const MAX_SAMPLE: usize = 100_000;

/// The connector.
#[derive(Debug)]
pub struct Mongodb;

#[async_trait]
impl Connector for Mongodb {
    fn name(&self) -> &'static str {
        "MONGODB"
    }

    async fn table(&self, mut spec: TableSpec) -> Result<ConnectorTable> {
        if spec.unbounded {
            return Err(spec.options.error(
                "a MongoDB collection is read once, as it stands: write CREATE EXTERNAL TABLE without UNBOUNDED",
            ));
        }
        let database = Database::new(spec.location.clone())?;
        let options = &mut spec.options;
        let collection = options.text("collection").unwrap_or(spec.name);
        if collection.is_empty() || collection.contains(['$', '\0']) {
            return Err(options.error(format!(
                "option collection '{collection}': write the name of a collection"
            )));
        }
        let on_error = options.one_of(
            "on_error",
            &[("fail", OnError::Fail), ("skip", OnError::Skip)],
        )?;
        let sample_size = sample_size(options)?;
        let mode = options.one_of(
            "mode",
            &[("append", Mode::Append), ("upsert", Mode::Upsert)],
        )?;
        let mut key = options.names("key");
        if key.is_empty() {
            key.clone_from(&spec.primary_key);
        }
        if mode == Mode::Upsert && key.is_empty() {
            return Err(options.error(
                "mode 'upsert' needs to know which document is which: add key 'a,b' or declare a PRIMARY KEY",
            ));
        }
        let schema = match spec.schema {
            Some(declared) => {
                check_columns(&declared, options)?;
                Some(declared)
            }
            None => {
                let connected = database.open().await?;
                infer::schema(&sample(&connected, &collection, sample_size).await?)?
            }
        };
        if let Some(schema) = &schema
            && let Some(unknown) = key.iter().find(|name| schema.index_of(name).is_err())
        {
            return Err(options.error(format!("the key column {unknown} is none of its columns")));
        }
        spec.options.finish()?;
        let sink = MongoSink {
            database: database.clone(),
            collection: collection.clone(),
            mode,
            key,
        };
        Ok(ConnectorTable {
            schema: schema.clone(),
            source: Some(Arc::new(MongoSource {
                database,
                collection,
                schema,
                on_error,
            })),
            sink: Some(Arc::new(sink)),
        })
    }

    fn reader(&self, encoded: &[u8], schema: SchemaRef) -> Result<Arc<dyn SplitReader>> {
        Ok(Arc::new(reader::Reader::decode(encoded, schema)?))
    }

    fn writer(&self, encoded: &[u8]) -> Result<Arc<dyn SinkWriter>> {
        Ok(Arc::new(Writer::decode(encoded)?))
    }

    fn endpoints(&self, spec: TableSpec) -> Result<Vec<Endpoint>> {
        let database = Database::new(spec.location)?;
        Ok(vec![Endpoint {
            connector: self.name().to_owned(),
            name: database.place(),
            payload: serde_json::to_vec(&database).map_err(|e| Error::internal(e.to_string()))?,
        }])
    }

    async fn reach(&self, payload: &[u8], _deadline: Duration) -> Result<String> {
        let database: Database = serde_json::from_slice(payload)
            .map_err(|e| Error::internal(format!("a database of another version: {e}")))?;
        let connected = database.open().await?;
        // What `buildInfo` tells anybody says nothing of the login.
        connected.names().await?;
        connected.version().await
    }
}

fn sample_size(options: &mut Options) -> Result<usize> {
    let size = options.parsed("sample_size")?.unwrap_or(SAMPLE_SIZE);
    match size {
        1..=MAX_SAMPLE => Ok(size),
        _ => Err(options.error(format!(
            "option sample_size '{size}': write a number of documents from 1 to {MAX_SAMPLE}"
        ))),
    }
}

/// Random documents; the first ones where the server does not know `$sample`.
async fn sample(
    connected: &Connected,
    collection: &str,
    size: usize,
) -> Result<Vec<RawDocumentBuf>> {
    if let Some(sample) = connected.sample(collection, size, Vec::new()).await? {
        return Ok(sample);
    }
    let collection = connected.raw(collection);
    let limit = i64::try_from(size).unwrap_or(i64::MAX);
    let documents = async {
        collection
            .find(doc! {})
            .limit(limit)
            .await?
            .try_collect()
            .await
    };
    connected.within(SCAN, documents).await
}

/// Declared columns must have types that BSON has values for, and names that can be asked for.
fn check_columns(declared: &SchemaRef, options: &Options) -> Result<()> {
    for field in declared.fields() {
        let name = field.name();
        if !is_field_name(name) {
            return Err(options.error(format!(
                "column {name}: a field of a document whose name is empty, contains a dot or begins with $ cannot be asked for"
            )));
        }
        let data_type = field.data_type();
        if !decode::is_supported(data_type) {
            let instead = match data_type {
                DataType::Map(..) => "declare a STRUCT with its fields, or VARCHAR for its JSON",
                _ => "declare another type, or VARCHAR, which holds the text of any value",
            };
            return Err(options.error(format!(
                "column {name} has the type {}: {instead}",
                sql_type(data_type)
            )));
        }
    }
    Ok(())
}

/// Whether a query can name the field.
pub(crate) fn is_field_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['.', '\0']) && !name.starts_with('$')
}
