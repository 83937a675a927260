//! Goes through a job's statements as a run of it would, up to where something would be read or written.

use crate::Shared;
use crate::jobs::model::JobKind;
use crate::plan::{Execution, Planner, Purpose, Query, purpose, refuse};
use crate::stream;
use crate::stream::plan::PlannedInsert;
use datafusion::common::TableReference;
use datafusion::sql::parser::Statement;
use essaim_common::scope::JobScope;
use essaim_common::{Error, Result};
use std::collections::HashSet;
use std::sync::Arc;

/// Where the walk is: the session that the statements so far have made.
#[derive(Debug)]
pub(crate) struct Walk {
    pub planner: Planner,
    scope: Arc<JobScope>,
    /// Tables that the job itself writes.
    written: HashSet<TableReference>,
    kinds: Vec<JobKind>,
}

/// What a statement is, once it has been found right.
#[derive(Debug)]
pub(crate) enum Checked {
    /// It changes the session.
    Setup,
    /// An INSERT that reads this table, which the job itself makes: it can only be planned once that is there.
    Later(TableReference),
    /// An INSERT of a batch job.
    Batch(Box<Query>),
    /// An INSERT of a streaming job.
    Stream(Box<Query>, Box<PlannedInsert>),
}

impl Walk {
    /// Before the first statement.
    pub fn new(shared: &Arc<Shared>) -> Self {
        let scope = JobScope::new("check", 0, shared.registry.slots());
        let planner = Planner::new(
            Arc::clone(&shared.runtime),
            Arc::clone(&shared.registry),
            Arc::clone(&scope),
        );
        Self {
            planner,
            scope,
            written: HashSet::new(),
            kinds: Vec::new(),
        }
    }

    /// Checks the next statement: tables, columns, types, and what a stream cannot do.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn statement(&mut self, statement: Statement) -> Result<Checked> {
        match purpose(&statement) {
            Purpose::Setup => {
                self.planner.set_up(statement).await?;
                Ok(Checked::Setup)
            }
            Purpose::Insert => {
                let read = self.planner.tables_read(&statement)?;
                if let Some(table) = read.into_iter().find(|table| self.written.contains(table)) {
                    return Ok(Checked::Later(table));
                }
                let query = self.planner.query(statement).await?;
                let checked = match &query.execution {
                    Execution::Stream(plan) => {
                        let logical = query.logical.clone();
                        let planned = stream::check(&self.planner, logical, plan).await;
                        self.kinds.push(JobKind::Streaming);
                        Checked::Stream(Box::new(query), Box::new(planned?))
                    }
                    _ => {
                        self.kinds.push(JobKind::Batch);
                        Checked::Batch(Box::new(query))
                    }
                };
                if let Checked::Batch(query) | Checked::Stream(query, _) = &checked {
                    self.written
                        .extend(query.sink.clone().map(TableReference::from));
                }
                Ok(checked)
            }
            Purpose::Rows => {
                refuse(&statement)?;
                Err(Error::invalid(format!(
                    "a job writes to tables, and this statement only yields rows: {statement}. Run it with `essaim sql`"
                )))
            }
        }
    }

    /// After the last statement: what kind of job it is.
    ///
    /// # Errors
    /// It writes nothing; it is both kinds at once.
    pub fn kind(&self) -> Result<JobKind> {
        let streams = self
            .kinds
            .iter()
            .filter(|kind| **kind == JobKind::Streaming);
        match (streams.count(), self.kinds.len()) {
            (_, 0) => Err(Error::invalid(
                "the job has no INSERT, so it would do nothing: write INSERT INTO a table STORED AS POSTGRES, KAFKA, PARQUET, …",
            )),
            (0, _) => Ok(JobKind::Batch),
            (streams, all) if streams == all => Ok(JobKind::Streaming),
            _ => Err(Error::invalid(
                "some INSERTs of the job read UNBOUNDED tables and some do not: a streaming job never comes to the others' end; submit these as a job of their own, before it",
            )),
        }
    }

    /// Lets go of what the sources keep for the walk, such as a snapshot.
    pub async fn end(self) {
        self.scope.release().await;
    }
}
