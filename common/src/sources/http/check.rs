//! What is known of a server before a job asks it: whether its first answer makes rows.

use super::HttpSource;
use super::reader::split_of;
use crate::check::Finding;
use crate::connector::SplitReader;
use crate::error::{Error, ErrorKind, Result};
use crate::sources::feed::client::in_clear;
use crate::sources::feed::plan::{Format, OnError};
use arrow::array::{Array, RecordBatch};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::Duration;

/// How long the sample may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Rows that are looked at.
const SAMPLE: usize = 20;
/// From so many rows on, a column that is NULL in all of them is suspicious.
const ENOUGH: usize = 5;

/// What is wrong with a table, or worth knowing, before it is read. Asks for the first URL once, unless
/// that is a POST.
///
/// # Errors
/// The server is out of reach.
pub async fn source(source: &HttpSource, unbounded: bool) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let access = &source.plan.requests.access;
    if source.urls.0.iter().any(|url| in_clear(url, access)) {
        found.push(Finding::warning(
            "LOCATION is http://, and the table has credentials: whoever is on the way can read them",
            "write https:// if the server speaks it",
        ));
    }
    if unbounded {
        found.push(Finding::note(
            "what a server answered cannot be read again: a new job begins with what it answers then",
            "INSERT it into a topic first, and read that, if other jobs want it too",
        ));
    }
    if unbounded && source.plan.rows.on_error == OnError::Fail {
        found.push(Finding::warning(
            "on_error is 'fail': the first record that does not decode, and the first refusal, ends the job",
            "set on_error 'skip', or keep it if that is what you want",
        ));
    }
    if source.plan.requests.are_posts() {
        return Ok(found);
    }
    match tokio::time::timeout(PATIENCE, sample(source)).await {
        Ok(sampled) => found.extend(sampled?),
        Err(_) => found.push(Finding::warning(
            format!(
                "the first URL was not answered within {} s",
                PATIENCE.as_secs()
            ),
            "look with `essaim doctor` whether the server can be reached",
        )),
    }
    Ok(found)
}

/// Decodes the first rows as the job would: that finds a token that is refused, columns of a wrong type, and names that
/// no record has.
async fn sample(source: &HttpSource) -> Result<Vec<Finding>> {
    let Some(url) = source.urls.0.first() else {
        return Ok(Vec::new());
    };
    let declared: Vec<usize> = (0..source.schema.fields().len())
        .filter(|index| {
            let name = source.schema.field(*index).name();
            source.plan.rows.metadata(name).is_none()
        })
        .collect();
    let mut reader = source.scan(&declared, Some(SAMPLE))?;
    let on_error = std::mem::replace(&mut reader.plan.rows.on_error, OnError::Fail);
    let ctx = Arc::new(TaskContext::default());
    let split = split_of(std::slice::from_ref(url), String::new())?;
    let rows = reader.read(&split, 0, &ctx, &ExecutionPlanMetricsSet::new())?;
    let rows: std::result::Result<Vec<RecordBatch>, _> = rows.try_collect().await;
    let batches = match rows.map_err(Error::from) {
        Ok(batches) => batches,
        Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
        Err(error) => {
            let finding = match on_error {
                OnError::Fail => Finding::error(error.to_string(), ""),
                OnError::Skip => Finding::warning(format!("would be skipped: {error}"), ""),
            };
            return Ok(vec![finding]);
        }
    };
    let count: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if count == 0 {
        return Ok(vec![Finding::note(
            format!(
                "{} has no records now",
                source.plan.requests.access.hidden.url(url)
            ),
            "look at the option json_path if there should be some",
        )]);
    }
    if count < ENOUGH || source.plan.rows.format == Format::Raw {
        return Ok(Vec::new());
    }
    let is_null = |index: usize| {
        let mut columns = batches.iter().map(|batch| batch.column(index));
        columns.all(|column| column.logical_null_count() == column.len())
    };
    let fields = reader.schema.fields().iter().enumerate();
    let empty = fields.filter(|(index, _)| is_null(*index));
    let empty: Vec<&str> = empty.map(|(_, field)| field.name().as_str()).collect();
    let unused = (!empty.is_empty()).then(|| {
        Finding::note(
            format!(
                "none of the first {count} records has a value for {}",
                empty.join(", ")
            ),
            "compare the names with those in the answer: upper and lower case differ; the option json_path says where the records are",
        )
    });
    Ok(unused.into_iter().collect())
}
