//! MongoDB as a sink, without transactions: every document has an `_id` or a key that is the same when it is written
//! again, and a document in `essaim_commits` says what is in.

mod commits;
mod committer;
mod encode;
mod stream;
mod target;
pub(crate) mod writer;

use crate::check::{Finding, Incoming, Write};
use crate::connector::{PlannedSink, Sink, SinkRun};
use crate::error::{Error, Result};
use crate::options::meant;
use crate::sources::mongodb::client::Database;
use crate::stream::{OutputMode, StreamSink, no_stream_sink};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use committer::Committer;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use stream::MongoStream;
use target::Target;
use writer::Writer;

/// What becomes of the documents that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They stay.
    Append,
    /// Those with the same key take the new values.
    Upsert,
}

/// A collection that can be written.
#[derive(Debug)]
pub struct MongoSink {
    pub database: Database,
    pub collection: String,
    pub mode: Mode,
    /// The fields that tell documents apart, of an upsert.
    pub key: Vec<String>,
}

#[async_trait]
impl Sink for MongoSink {
    async fn absent(&self) -> Result<String> {
        let names = self.database.open().await?.names().await?;
        let (place, wanted) = (self.database.place(), &self.collection);
        let known = names.iter().map(String::as_str);
        Ok(match names.contains(wanted) {
            true => format!("collection {wanted} of {place} has no documents"),
            false => match meant(wanted, known) {
                Some(near) => format!("{place} has no collection {wanted}: did you mean {near}?"),
                None => format!("{place} has no collection {wanted}"),
            },
        })
    }

    async fn plan(&self, input: &SchemaRef, overwrite: bool, run: &SinkRun) -> Result<PlannedSink> {
        if overwrite {
            return Err(Error::invalid(format!(
                "collection {} cannot be overwritten in one step: write INSERT INTO with mode 'upsert', or drop it first",
                self.collection
            )));
        }
        let target = Target::plan(self, input).await?;
        let prefix = staging_prefix(run);
        Ok(PlannedSink {
            writer: Arc::new(Writer {
                database: self.database.clone(),
                collection: self.collection.clone(),
                prefix: format!("{prefix}{}_", run.generation),
            }),
            committer: Arc::new(Committer::new(self.database.clone(), target, run, prefix)),
        })
    }

    async fn stream(
        &self,
        input: &SchemaRef,
        mode: OutputMode,
        run: &SinkRun,
    ) -> Result<Arc<dyn StreamSink>> {
        match (mode, self.mode) {
            (OutputMode::Append, _) | (OutputMode::Update, Mode::Upsert) => {}
            (OutputMode::Update, Mode::Append) => {
                return Err(no_stream_sink(
                    mode,
                    "mode 'append' would repeat the groups that change: set mode 'upsert' and key '…', \
                     or SET essaim.output_mode = 'append'",
                ));
            }
            (OutputMode::Complete, _) => {
                return Err(no_stream_sink(
                    mode,
                    "a collection cannot be replaced in one step: set mode 'upsert' and key '…', \
                     and SET essaim.output_mode = 'update'",
                ));
            }
        }
        let target = Target::plan(self, input).await?;
        Ok(Arc::new(MongoStream::new(
            self.database.clone(),
            target,
            run,
        )))
    }

    fn prefers_update(&self) -> bool {
        self.mode == Mode::Upsert
    }

    async fn findings(&self, incoming: &Incoming<'_>) -> Result<Vec<Finding>> {
        if self.mode == Mode::Append || incoming.is_unique(&self.key) == Some(true) {
            return Ok(Vec::new());
        }
        let key = self.key.join(", ");
        let per = match incoming.write {
            Write::Stream(_) => "an epoch",
            Write::Batch { .. } => "the job",
        };
        Ok(vec![Finding::warning(
            format!(
                "nothing says that the key ({key}) of collection {} comes once only: a key that comes twice in {per} fails it",
                self.collection
            ),
            format!("GROUP BY {key}, or SELECT DISTINCT ON ({key}) …"),
        )])
    }
}

/// What the names of a run's staging collections begin with, in every generation; the generation and 8 random digits
/// follow.
fn staging_prefix(run: &SinkRun) -> String {
    format!("essaim_staging_{}_", run.name())
}
