//! PostgreSQL as a sink: workers stage rows, the master makes them visible in one transaction that also names the run.

mod arrays;
mod check;
mod commits;
mod committer;
mod encode;
mod stream;
mod target;
pub(crate) mod writer;

use crate::check::{Finding, Incoming};
use crate::connector::{PlannedSink, Sink, SinkRun};
use crate::error::Result;
use crate::sources::postgres::catalog::{self, TableName};
use crate::sources::postgres::client::Database;
use crate::stream::{OutputMode, StreamSink, no_stream_sink};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use commits::Commits;
use committer::Committer;
use std::sync::Arc;
use stream::PostgresStream;
use target::Target;
use writer::Writer;

/// What becomes of the rows that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They stay.
    Append,
    /// Those with the same key take the new values.
    Upsert,
    /// They go.
    Overwrite,
}

/// A table that can be written.
#[derive(Debug)]
pub struct PostgresSink {
    pub database: Database,
    pub name: TableName,
    /// The declared columns, if any: their NOT NULL is that of a table that the sink creates.
    pub declared: Option<SchemaRef>,
    pub mode: Mode,
    /// Columns of the primary key; what an upsert goes by.
    pub key: Vec<String>,
}

#[async_trait]
impl Sink for PostgresSink {
    async fn absent(&self) -> Result<String> {
        let mut client = self.database.connect().await?;
        catalog::absent(&mut client, &self.name).await
    }

    async fn plan(&self, input: &SchemaRef, overwrite: bool, run: &SinkRun) -> Result<PlannedSink> {
        let mut client = self.database.connect().await?;
        let target = Target::plan(self, input, overwrite, &mut client).await?;
        let writer = Writer {
            database: self.database.clone(),
            schema: target.schema.clone(),
            target: target.quoted(),
            prefix: format!("{}{}_", staging_prefix(run), run.generation),
            columns: target.kinds(),
        };
        let committer = Committer {
            database: self.database.clone(),
            commits: Commits::new(&target.schema, target.quoted(), run),
            target,
            run: run.clone(),
            prefix: staging_prefix(run),
        };
        Ok(PlannedSink {
            writer: Arc::new(writer),
            committer: Arc::new(committer),
        })
    }

    async fn stream(
        &self,
        input: &SchemaRef,
        mode: OutputMode,
        run: &SinkRun,
    ) -> Result<Arc<dyn StreamSink>> {
        match (mode, self.mode) {
            (OutputMode::Complete, _) | (_, Mode::Upsert) | (OutputMode::Append, Mode::Append) => {}
            (OutputMode::Update, Mode::Append) => {
                return Err(no_stream_sink(
                    mode,
                    "mode 'append' would repeat the groups that change: set mode 'upsert' and key '…', \
                     or SET essaim.output_mode = 'append'",
                ));
            }
            (_, Mode::Overwrite) => {
                return Err(no_stream_sink(
                    mode,
                    "mode 'overwrite' would keep the rows of one epoch only: set mode 'append', or 'upsert' and \
                     key '…', or SET essaim.output_mode = 'complete'",
                ));
            }
        }
        let mut client = self.database.connect().await?;
        let overwrite = mode == OutputMode::Complete;
        let target = Target::plan(self, input, overwrite, &mut client).await?;
        Ok(Arc::new(PostgresStream::new(
            self.database.clone(),
            target,
            run,
        )))
    }

    fn prefers_update(&self) -> bool {
        self.mode == Mode::Upsert
    }

    async fn findings(&self, incoming: &Incoming<'_>) -> Result<Vec<Finding>> {
        check::check(self, incoming).await
    }
}

/// What the names of a run's staging tables begin with, in every generation; the generation and 8 random digits follow.
/// A name has at most 63 bytes, which leaves 20 digits for query, epoch and generation: of a long job id only the end
/// is used, which in a UUID of version 7 is random.
fn staging_prefix(run: &SinkRun) -> String {
    const JOB: usize = 16;
    let name = run.name();
    let (job, rest) = name.split_once('_').unwrap_or((name.as_str(), ""));
    let job = &job[job.len().saturating_sub(JOB)..];
    format!("essaim_staging_{job}_{rest}_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staging_table_has_a_name_that_the_server_does_not_cut() {
        let run = SinkRun {
            job: uuid::Uuid::from_u128(u128::MAX).to_string(),
            query: 9_999,
            generation: 9_999,
            epoch: 999_999_999_999,
        };
        let name = format!("{}{}_{}", staging_prefix(&run), run.generation, "01234567");
        assert_eq!(name.len(), 63, "{name}");
    }
}
