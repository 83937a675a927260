//! What can be known of a job before it runs: the findings of its connectors, and the places that they must reach.

use crate::connector::{Sink, TableSpec};
use crate::error::{Error, Result};
use crate::session;
use crate::sinks::files::Format;
use crate::sources::files;
use crate::stream::OutputMode;
use crate::table::{self, Table};
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::logical_expr::CreateExternalTable;
use std::fmt;
use std::time::Duration;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// The job runs, and one day it may fail or do what nobody wants.
    Warning,
    /// The job would be refused, or would fail.
    Error,
}

/// One thing that was found. Carries no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// What is so, of what.
    pub what: String,
    /// What to do; empty where `what` says it.
    pub advice: String,
}

impl Finding {
    /// A finding of any severity.
    pub fn new(severity: Severity, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            severity,
            what: what.into(),
            advice: advice.into(),
        }
    }

    /// The job would be refused, or would fail.
    pub fn error(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Severity::Error, what, advice)
    }

    /// The job runs, but.
    pub fn warning(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Severity::Warning, what, advice)
    }

    /// Worth knowing.
    pub fn note(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Severity::Note, what, advice)
    }
}

impl From<&Error> for Finding {
    fn from(error: &Error) -> Self {
        Self::error(error.to_string(), "")
    }
}

/// The rows that an INSERT brings to its sink, as far as planning knows them.
#[derive(Debug)]
pub struct Incoming<'a> {
    pub schema: &'a SchemaRef,
    pub write: Write,
    /// Columns, by index, that are NULL in every row.
    pub always_null: Vec<usize>,
    /// What tells the rows apart: for each thing that they are grouped by, the columns that carry it. `None` if they are
    /// not grouped.
    pub groups: Option<Vec<Vec<usize>>>,
}

/// How an INSERT writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Once. `overwrite` for INSERT OVERWRITE.
    Batch { overwrite: bool },
    /// Epoch by epoch.
    Stream(OutputMode),
}

impl Incoming<'_> {
    /// Whether no two rows have the same values in the columns of `key`; `None` if that is not known.
    pub fn is_unique(&self, key: &[String]) -> Option<bool> {
        let is_key = |column: &usize| {
            let field = self.schema.fields().get(*column);
            field.is_some_and(|field| key.contains(field.name()))
        };
        let groups = self.groups.as_ref()?;
        Some(groups.iter().all(|carriers| carriers.iter().any(is_key)))
    }
}

/// What the source behind a table finds wrong or worth knowing; nothing for a table that is no source.
///
/// # Errors
/// The server is out of reach, or refuses to answer.
pub async fn source(provider: &dyn TableProvider) -> Result<Vec<Finding>> {
    match provider.downcast_ref::<Table>() {
        Some(table) => table.source_findings().await,
        None => Ok(Vec::new()),
    }
}

/// What the sink behind a table finds wrong or worth knowing; nothing for a table that is no sink.
///
/// # Errors
/// The server is out of reach, or refuses to answer.
pub async fn sink(provider: &dyn TableProvider, incoming: &Incoming<'_>) -> Result<Vec<Finding>> {
    if let Some(table) = provider.downcast_ref::<Table>() {
        return table.sink_findings(incoming).await;
    }
    match files::sink_of(provider) {
        Some(sink) => sink.findings(incoming).await,
        None => Ok(Vec::new()),
    }
}

/// Something outside that a table needs, for whoever tries to reach it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The connector that knows how, e.g. "KAFKA".
    pub connector: String,
    /// For people, without secrets, e.g. `PostgreSQL at db:5432/app`.
    pub name: String,
    /// The connector's own encoding; may hold a password.
    pub payload: Vec<u8>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({}: {})", self.connector, self.name)
    }
}

impl Endpoint {
    /// Tries to reach it, as work for the table would. Returns what was found there, in a few words.
    ///
    /// # Errors
    /// What is broken, and what to do; no answer within `deadline`.
    pub async fn reach(&self, deadline: Duration) -> Result<String> {
        let connector = session::connector(&self.connector)?;
        match tokio::time::timeout(deadline, connector.reach(&self.payload, deadline)).await {
            Ok(found) => found,
            Err(_) => Err(Error::unavailable(format!(
                "{} has not answered for {:.1} s",
                self.name,
                deadline.as_secs_f64()
            ))),
        }
    }
}

/// What a table that is declared so needs to reach. Asks nobody.
///
/// # Errors
/// A connector that is unknown; a LOCATION or an option that is wrong.
pub fn endpoints(command: &CreateExternalTable) -> Result<Vec<Endpoint>> {
    let stored_as = command.file_type.to_uppercase();
    let name = match Format::ALL.iter().any(|format| format.name() == stored_as) {
        true => files::NAME,
        false => stored_as.as_str(),
    };
    let connector = session::connector(name)?;
    let mut endpoints = Vec::new();
    for location in &command.locations {
        let spec: TableSpec = table::spec(command, location)?;
        endpoints.extend(connector.endpoints(spec)?);
    }
    Ok(endpoints)
}
