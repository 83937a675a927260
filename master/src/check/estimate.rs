//! How much an INSERT would read: splits, rows and bytes of each source, as it is planned now.

use crate::plan::cut::file_scan;
use crate::plan::stage::StageInputExec;
use crate::plan::{Execution, Query};
use crate::stream::plan::{PlannedInsert, Static};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::ExecutionPlan;
use essaim_common::Result;
use essaim_common::check::Finding;
use essaim_common::scan::ScanExec;
use essaim_common::stream::StreamSource;
use essaim_proto::v1::SourceEstimate;
use futures::StreamExt;
use object_store::{GetOptions, ObjectStore};
use std::sync::Arc;

/// Files that are opened to see whether they can be read, and how many at a time.
const FILES: usize = 100;
const FILES_AT_A_TIME: usize = 8;

/// The plans of a query of a batch job.
pub fn plans(query: &Query) -> Vec<Arc<dyn ExecutionPlan>> {
    vec![match &query.execution {
        Execution::Tasks(cut) => Arc::clone(&cut.upper),
        Execution::Exchange { plan, .. } | Execution::Master(plan) | Execution::Stream(plan) => {
            Arc::clone(plan)
        }
    }]
}

/// The plans of what a streaming INSERT reads besides streams.
pub fn statics(insert: &PlannedInsert) -> Vec<Arc<dyn ExecutionPlan>> {
    let plans = insert.statics.iter().map(|read| match read {
        Static::Broadcast(broadcast) => Arc::clone(&broadcast.plan),
        Static::Upper(_, plan) => Arc::clone(plan),
    });
    plans.collect()
}

/// What a plan reads, and the files among it that cannot be read.
pub async fn of(
    runtime: &RuntimeEnv,
    plan: &Arc<dyn ExecutionPlan>,
) -> (Vec<SourceEstimate>, Vec<Finding>) {
    let mut leaves = Vec::new();
    find_leaves(plan, &mut leaves);
    let mut estimates = Vec::new();
    let mut found = Vec::new();
    for leaf in leaves {
        if let Some(scan) = leaf.downcast_ref::<ScanExec>() {
            if scan.stream().is_none() {
                estimates.push(of_scan(scan));
            }
        } else if let Some(files) = file_scan(&leaf) {
            let groups = files.file_groups.iter();
            let parts: Vec<PartitionedFile> =
                groups.flat_map(|group| group.iter().cloned()).collect();
            let rows = files.statistics().num_rows.get_value().copied();
            estimates.push(of_files(
                files.object_store_url.as_str(),
                files.file_groups.len(),
                &parts,
                rows.map(|rows| rows as u64),
            ));
            match runtime.object_store(&files.object_store_url) {
                Ok(store) => found.extend(unreadable(&store, parts).await),
                Err(error) => found.push(Finding::from(&essaim_common::Error::from(error))),
            }
        }
    }
    (estimates, found)
}

fn find_leaves(plan: &Arc<dyn ExecutionPlan>, found: &mut Vec<Arc<dyn ExecutionPlan>>) {
    if let Some(input) = plan.downcast_ref::<StageInputExec>() {
        find_leaves(&input.stage().plan, found);
        for broadcast in &input.stage().broadcasts {
            find_leaves(&broadcast.plan, found);
        }
        return;
    }
    let children = plan.children();
    if children.is_empty() {
        found.push(Arc::clone(plan));
    }
    for child in children {
        find_leaves(child, found);
    }
}

fn of_scan(scan: &ScanExec) -> SourceEstimate {
    let splits = || scan.partitions().iter().flat_map(|group| group.iter());
    SourceEstimate {
        line: 0,
        table: scan.table().to_owned(),
        connector: scan.connector().to_owned(),
        unbounded: false,
        splits: splits().count() as u64,
        rows: splits().map(|split| split.rows).sum(),
        bytes: splits().map(|split| split.bytes).sum(),
    }
}

fn of_files(
    store: &str,
    groups: usize,
    parts: &[PartitionedFile],
    rows: Option<u64>,
) -> SourceEstimate {
    let folder = parts.first().map_or(String::new(), |part| {
        let path = part.object_meta.location.as_ref();
        path.rsplit_once('/')
            .map_or("", |(folder, _)| folder)
            .to_owned()
    });
    let size = |part: &PartitionedFile| match &part.range {
        Some(range) => u64::try_from(range.end - range.start).unwrap_or(0),
        None => part.object_meta.size,
    };
    SourceEstimate {
        line: 0,
        table: format!("{store}{folder}"),
        connector: "FILES".to_owned(),
        unbounded: false,
        splits: groups as u64,
        rows,
        bytes: Some(parts.iter().map(size).sum()),
    }
}

/// The first of the files that this process cannot open.
async fn unreadable(store: &Arc<dyn ObjectStore>, parts: Vec<PartitionedFile>) -> Option<Finding> {
    let mut paths: Vec<_> = parts
        .into_iter()
        .map(|part| part.object_meta.location)
        .collect();
    paths.dedup();
    paths.truncate(FILES);
    let opened = futures::stream::iter(paths).map(|path| async move {
        let options = GetOptions {
            range: Some((0..1).into()),
            ..GetOptions::default()
        };
        // An empty file has no first byte, and is no trouble to read.
        match store.get_opts(&path, options).await {
            Err(
                error @ (object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. }),
            ) => Some(Finding::error(
                format!("{path} cannot be read: {error}"),
                "let the users that master and workers run as read it",
            )),
            Err(object_store::Error::NotFound { .. }) => Some(Finding::error(
                format!("{path} is listed, and cannot be opened"),
                "is it a link that leads nowhere?",
            )),
            _ => None,
        }
    });
    let mut opened = std::pin::pin!(opened.buffer_unordered(FILES_AT_A_TIME));
    while let Some(outcome) = opened.next().await {
        if outcome.is_some() {
            return outcome;
        }
    }
    None
}

/// The connector of a stream that an INSERT reads.
fn connector_of(insert: &PlannedInsert, table: &str) -> &'static str {
    let mut leaves = Vec::new();
    for (stage, _) in &insert.stages {
        find_leaves(&stage.plan, &mut leaves);
    }
    let mut scans = leaves
        .iter()
        .filter_map(|leaf| leaf.downcast_ref::<ScanExec>());
    let scan = scans.find(|scan| scan.table() == table);
    scan.map_or("", ScanExec::connector)
}

/// What a stream of `insert` would read first: what is there now.
///
/// # Errors
/// The server is out of reach; the options name what is not there.
pub async fn of_stream(
    insert: &PlannedInsert,
    table: &str,
    source: &dyn StreamSource,
) -> Result<SourceEstimate> {
    let named = |e: essaim_common::Error| e.context(format!("table {table}"));
    let start = source.start().await.map_err(named)?;
    let there = source.available(&start).await.map_err(named)?;
    let rows = there.latest.0.iter().map(|(partition, end)| {
        let from = there.start.0.get(partition).copied().unwrap_or(*end);
        u64::try_from(end - from).unwrap_or(0)
    });
    Ok(SourceEstimate {
        line: 0,
        table: table.to_owned(),
        connector: connector_of(insert, table).to_owned(),
        unbounded: true,
        splits: there.latest.0.len() as u64,
        rows: Some(rows.sum()),
        bytes: None,
    })
}
