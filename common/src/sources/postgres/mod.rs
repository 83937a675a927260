//! `STORED AS POSTGRES`: tables of a PostgreSQL server, read as one snapshot by many workers, written in one transaction.
//!
//! The row's way: [`source`] looks the table up ([`catalog`]), takes filters ([`filter`]), exports a [`snapshot`] and
//! cuts the table ([`ranges`]); on a worker the [`reader`] copies one range out and the [`decode`]r makes Arrow of it
//! ([`types`], [`numeric`]). The way back is in [`crate::sinks::postgres`].

pub(crate) mod catalog;
pub(crate) mod client;
pub mod decode;
mod filter;
pub(crate) mod numeric;
mod ranges;
mod reader;
mod snapshot;
mod source;
pub(crate) mod tls;
pub mod types;

use crate::connector::{Connector, ConnectorTable, SinkWriter, SplitReader, TableSpec};
use crate::error::{Error, Result};
use crate::sinks::postgres::{Mode, PostgresSink, writer::Writer};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use catalog::TableName;
use client::{Database, quote};
use ranges::KeyRanges;
use source::{PostgresSource, natural_schema, read_columns};
use std::sync::Arc;

/// The connector.
#[derive(Debug)]
pub struct Postgres;

#[async_trait]
impl Connector for Postgres {
    fn name(&self) -> &'static str {
        "POSTGRES"
    }

    async fn table(&self, mut spec: TableSpec) -> Result<ConnectorTable> {
        if spec.unbounded {
            return Err(spec.options.error(
                "a PostgreSQL table has an end: write CREATE EXTERNAL TABLE without UNBOUNDED",
            ));
        }
        let database = Database::new(spec.location.clone())?;
        let name = match spec.options.text("table") {
            Some(name) => TableName::parse(&name)?,
            None => TableName {
                schema: None,
                table: spec.name.clone(),
            },
        };
        let keys = KeyRanges::take(&mut spec.options)?;
        let mode = spec.options.one_of(
            "mode",
            &[
                ("append", Mode::Append),
                ("upsert", Mode::Upsert),
                ("overwrite", Mode::Overwrite),
            ],
        )?;
        let mut key = spec.options.names("key");
        if key.is_empty() {
            key.clone_from(&spec.primary_key);
        }
        if mode == Mode::Upsert && key.is_empty() {
            return Err(spec.options.error(
                "mode 'upsert' needs to know which row is which: add key 'a,b' or declare a PRIMARY KEY",
            ));
        }
        let options = spec.options.clone();
        spec.options.finish()?;

        let mut client = database.connect().await?;
        let relation = catalog::relation(&mut client, &name).await?;
        let schema: Option<SchemaRef> = match (&spec.schema, &relation) {
            (Some(declared), _) => Some(Arc::clone(declared)),
            (None, Some(relation)) => Some(natural_schema(relation)),
            (None, None) => None,
        };
        let columns = match (&schema, &relation) {
            (Some(schema), Some(relation)) => read_columns(relation, schema)?,
            _ => Vec::new(),
        };
        if let (Some(keys), Some(relation)) = (&keys, &relation) {
            // Only to find a wrong column or bound before the first query does.
            keys.cut(relation, &options)?;
        }
        for column in &key {
            let known = schema
                .as_ref()
                .is_none_or(|schema| schema.index_of(column).is_ok());
            if !known {
                return Err(Error::invalid(format!(
                    "table {}: the key column {} is none of its columns",
                    spec.name,
                    quote(column)
                )));
            }
        }
        let sink = PostgresSink {
            database: database.clone(),
            name: name.clone(),
            declared: spec.schema,
            mode,
            key,
        };
        Ok(ConnectorTable {
            schema: schema.clone(),
            source: Some(Arc::new(PostgresSource {
                database,
                name,
                schema,
                columns,
                keys,
                options,
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
}
