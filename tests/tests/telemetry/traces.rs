//! Traces: one an epoch and one a query, over all processes that had a part in it; and no collector that can hurt a job.

use crate::scrape::Scrape;
use crate::{COUNT_EVENTS, declare_events, event};
use anyhow::{Context, Result};
use essaim_tests::cluster::Cluster;
use essaim_tests::kafka::Topic;
use essaim_tests::postgres::Database;
use essaim_tests::sql::{integers, numbers};
use essaim_tests::{SOON, unique, wait_for};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A span that has arrived.
#[derive(Debug, Clone)]
struct Span {
    service: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    /// Empty for the root.
    parent: Vec<u8>,
    attributes: Vec<(String, String)>,
}

impl Span {
    fn attribute(&self, name: &str) -> &str {
        let found = self.attributes.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }
}

fn text(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let pairs = attributes.iter().map(|pair| {
        let value = pair.value.as_ref().and_then(|value| value.value.as_ref());
        let value = match value {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            _ => String::new(),
        };
        (pair.key.clone(), value)
    });
    pairs.collect()
}

/// A collector that remembers what it gets.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default();
            let resource = text(&resource.attributes);
            let service = resource.iter().find(|(name, _)| name == "service.name");
            let service = service.map_or(String::new(), |(_, value)| value.clone());
            let spans = of_resource.scope_spans.into_iter().flat_map(|s| s.spans);
            let spans = spans.map(|span| Span {
                service: service.clone(),
                name: span.name,
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
                attributes: text(&span.attributes),
            });
            self.0.lock().await.extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts one; it ends with the handle. Returns its URL.
    async fn start() -> Result<(Self, String, AbortOnDropHandle<()>)> {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move {
            // Without it no trace arrives, and the test says so.
            let _ = server.await;
        });
        Ok((collector, url, AbortOnDropHandle::new(server)))
    }

    /// The spans of the first trace whose root is `wanted`, in which the tasks of so many workers have arrived.
    async fn trace(&self, wanted: impl Fn(&Span) -> bool, workers: usize) -> Result<Vec<Span>> {
        wait_for("a trace of all workers", SOON, async || {
            let spans = self.0.lock().await.clone();
            let roots = spans.iter().filter(|s| s.parent.is_empty() && wanted(s));
            let mut traces = roots.map(|root| {
                let same = spans.iter().filter(|span| span.trace == root.trace);
                same.cloned().collect::<Vec<Span>>()
            });
            Ok(traces.find(|trace| workers_of(trace).len() == workers))
        })
        .await
    }
}

/// The workers whose tasks' spans are in the trace, each below the master's span of the attempt.
fn workers_of(trace: &[Span]) -> BTreeSet<String> {
    let tasks = trace
        .iter()
        .filter(|span| span.service == "essaim-worker" && span.name == "task");
    let workers = tasks.filter_map(|task| {
        let attempt = trace.iter().find(|span| span.id == task.parent)?;
        let of_master = attempt.service == "essaim-master" && attempt.name == "attempt";
        of_master.then(|| attempt.attribute("worker").to_owned())
    });
    workers.collect()
}

#[tokio::test]
async fn a_trace_holds_an_epoch_of_master_and_both_workers() -> Result<()> {
    let (collector, url, _server) = Collector::start().await?;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let cluster = Cluster::start_under(2, 1, &variables).await?;
    let workers: BTreeSet<String> = cluster.workers().iter().map(|w| w.id.clone()).collect();
    let client = cluster.client().await?;
    let (topic, database) = (Topic::create(2).await?, Database::create().await?);
    topic.produce((0..20_000).map(event)).await?;
    let sql = [
        declare_events(&topic, "fail"),
        database.declare(
            "per_minute",
            "per_minute",
            ", mode 'upsert', key 'window_start,kind'",
        ),
        COUNT_EVENTS.to_owned(),
    ]
    .concat();
    let job = client.submit(&sql, &unique("traced")).await?;
    client
        .wait_until(&job, |job| job.last_epoch.is_some())
        .await?;

    let of_job = |span: &Span| span.name == "epoch" && span.attribute("job") == job;
    let trace = collector.trace(of_job, 2).await?;
    assert_eq!(workers_of(&trace), workers);
    let root = trace.iter().find(|s| s.parent.is_empty()).context("root")?;
    for name in ["write_offsets", "finish", "checkpoint"] {
        let of_master = |s: &&Span| s.name == name && s.service == "essaim-master";
        assert!(trace.iter().any(|s| of_master(&s)), "{name}: {trace:?}");
    }
    let task = trace.iter().find(|s| s.name == "task").context("task")?;
    assert_eq!(task.attribute("job"), job, "{task:?}");
    assert_eq!(task.attribute("epoch"), root.attribute("epoch"), "{task:?}");
    let roots = trace.iter().filter(|s| s.parent.is_empty());
    assert_eq!(roots.count(), 1, "{trace:?}");

    // A query is a trace too.
    let sql = format!(
        "{}SELECT count(*) FROM numbers",
        numbers("numbers", 4_000_000)
    );
    let (_, query) = client.start(&sql).await?.finish().await?;
    let of_query = |span: &Span| span.name == "query" && span.attribute("job") == query.id;
    assert_eq!(workers_of(&collector.trace(of_query, 2).await?), workers);

    let exported = [("outcome", "exported")];
    let scrape = Scrape::of(cluster.http(), false).await?;
    assert!(scrape.sum("essaim_trace_spans_total", &exported) > Some(0.0));
    Ok(())
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_spans_and_nothing_else() -> Result<()> {
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", silent.local_addr()?);
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
    ];
    let cluster = Cluster::start_under(1, 2, &variables).await?;
    let client = cluster.client().await?;
    let sql = format!("{}SELECT count(*) FROM numbers", numbers("numbers", 1000));
    wait_for("spans to be dropped", SOON, async || {
        assert_eq!(integers(&client.query(&sql).await?, 0)?, [1000]);
        let scrape = Scrape::of(cluster.http(), false).await?;
        let dropped = scrape.sum("essaim_trace_spans_total", &[("outcome", "dropped")]);
        Ok((dropped > Some(0.0)).then_some(()))
    })
    .await?;
    cluster.stop().await
}
