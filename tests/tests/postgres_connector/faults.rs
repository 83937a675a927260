//! What goes wrong outside: a dead attempt, a server that refuses, one that goes away.

use crate::harness::{
    Place, job, postgres, query, read_split, refused, run, scope, sql_session, task, url,
};
use arrow::array::{ArrayRef, Int32Array, RecordBatch};
use datafusion::common::DataFusionError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use essaim_common::connector::{ScanRequest, TableSpec};
use essaim_common::options::Options;
use essaim_common::secret::Secret;
use essaim_common::{ErrorKind, Result};
use futures::StreamExt;
use std::sync::Arc;

fn batch() -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int32Array::from_iter_values(0..1000));
    RecordBatch::try_from_iter([("id", ids)]).unwrap()
}

#[tokio::test]
async fn an_attempt_that_dies_leaves_nothing() {
    let mut place = Place::new().await;
    let table = place.table("t", &[]).await.unwrap();
    let batch = batch();
    let planned = table
        .sink
        .unwrap()
        .plan(&batch.schema(), false, &run(&job(), 1))
        .await
        .unwrap();
    planned.committer.begin().await.unwrap();
    let tables = "SELECT count(*) FROM pg_class WHERE relname LIKE 'essaim_staging%' AND relnamespace = current_schema()::regnamespace";
    // Its input fails.
    let failing = futures::stream::iter([
        Ok(batch.clone()),
        Err(DataFusionError::Execution("no more".to_owned())),
    ]);
    let failing = RecordBatchStreamAdapter::new(batch.schema(), failing);
    let error = planned
        .writer
        .write(0, Box::pin(failing), &task())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no more"), "{error}");
    // It is dropped while it waits for more rows.
    let (seen, started) = tokio::sync::oneshot::channel();
    let mut seen = Some(seen);
    let (first, schema) = (batch.clone(), batch.schema());
    let endless = futures::stream::iter([Ok(first)]).chain(futures::stream::poll_fn(move |_| {
        seen.take().map(|seen| seen.send(()));
        std::task::Poll::Pending
    }));
    let endless = RecordBatchStreamAdapter::new(schema, endless);
    let writer = Arc::clone(&planned.writer);
    let attempt = tokio::spawn(async move { writer.write(0, Box::pin(endless), &task()).await });
    started.await.unwrap();
    attempt.abort();
    assert!(attempt.await.unwrap_err().is_cancelled());
    // One that ended, but that nobody waits for.
    let late =
        RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch.clone())]));
    planned
        .writer
        .write(0, Box::pin(late), &task())
        .await
        .unwrap();
    assert_eq!(place.text(tables).await, "1");
    planned.committer.abort().await;
    assert_eq!(place.text(tables).await, "0");
    assert_eq!(
        place.text("SELECT to_regclass('t') IS NULL").await,
        "true",
        "the target is created by the commit"
    );
    place.drop().await;
}

async fn declare(location: &str) -> Result<()> {
    let spec = TableSpec {
        name: "t".to_owned(),
        schema: None,
        location: Secret::new(location),
        options: Options::new("t", [])?,
        primary_key: Vec::new(),
        unbounded: false,
    };
    postgres().table(spec).await.map(|_| ())
}

#[tokio::test]
async fn a_server_that_is_down_or_refuses_is_named_without_the_password() {
    let error = declare("postgres://essaim:hunter2@127.0.0.1:1/essaim")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error
            .to_string()
            .contains("127.0.0.1:1/essaim is out of reach"),
        "{error}"
    );
    assert!(!error.to_string().contains("hunter2"));
    let nobody = url().replacen("postgres://", "", 1);
    let nobody = format!(
        "postgres://no_such_login:hunter2@{}",
        nobody.split_once('@').unwrap().1
    );
    let error = declare(&nobody).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(!error.to_string().contains("hunter2"));
    let error = declare("mysql://h/db").await.unwrap_err();
    assert!(
        error.to_string().contains("postgres://HOST:PORT/DATABASE'"),
        "{error}"
    );
}

#[tokio::test]
async fn a_snapshot_that_is_gone_and_a_server_that_ends_the_session_are_transient() {
    let mut place = Place::new().await;
    place
        .run("CREATE TABLE t AS SELECT generate_series(1, 200000) AS id")
        .await;
    let table = place.table("t", &[]).await.unwrap();
    let scope = scope();
    let request = ScanRequest {
        projection: &[0],
        filters: &[],
        limit: None,
        target_splits: 1,
        scope: &scope,
    };
    let scan = table.source.unwrap().plan(request).await.unwrap();
    let metrics = datafusion::physical_plan::metrics::ExecutionPlanMetricsSet::new();
    let mut rows = scan
        .reader
        .read(&scan.splits[0], 0, &task(), &metrics)
        .unwrap();
    rows.next().await.unwrap().unwrap();
    let schema = place.schema.clone();
    // Also the snapshot's own session: only the reader of this test's schema is meant.
    let ended = place
        .text(&format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE query LIKE 'COPY (SELECT%{schema}%' AND pid <> pg_backend_pid()"
        ))
        .await;
    assert_eq!(ended, "1");
    let error = loop {
        match rows.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break essaim_common::Error::from(error),
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    scope.release().await;
    drop(rows);
    // The server notices the closed connection a moment later.
    let error = loop {
        match read_split(&scan, 0).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        error.to_string().contains("the job's snapshot is gone"),
        "{error}"
    );
    place.drop().await;
}

#[tokio::test]
async fn unknown_tables_columns_and_options_are_named() {
    let mut place = Place::new().await;
    place
        .run("CREATE TABLE t (id int); CREATE INDEX an_index ON t (id)")
        .await;
    let session = sql_session();
    query(&session, &place.declare("t", "", "")).await.unwrap();
    let error = refused(&session, "SELECT nope FROM t").await;
    assert!(error.contains("nope"), "{error}");
    let error = refused(&session, &place.declare("an_index", "", "")).await;
    assert!(error.contains("neither a table nor a view"), "{error}");
    let error = refused(&session, &place.declare("u", "", ", modus 'upsert'")).await;
    assert!(
        error.contains("unknown option modus: did you mean mode?"),
        "{error}"
    );
    let error = refused(&session, &place.declare("u", "", ", mode 'upsert'")).await;
    assert!(error.contains("add key 'a,b'"), "{error}");
    place.drop().await;
}
