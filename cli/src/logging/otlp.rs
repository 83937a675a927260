//! Spans on their way to an OpenTelemetry collector, over OTLP and gRPC, when OpenTelemetry's variables name one.
//!
//! Nothing waits for the collector: spans that ended wait in a queue of bounded length for a thread of their own, and
//! one that finds the queue full is dropped and counted.

use essaim_common::trace::SPANS;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use std::time::Duration;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

/// OpenTelemetry's default of `OTEL_BSP_MAX_QUEUE_SIZE`.
const QUEUE: usize = 2048;
/// How long a process that ends waits for its last spans.
const FLUSH: Duration = Duration::from_secs(2);

/// What sends spans, for as long as the process runs.
#[derive(Debug)]
pub(super) struct Export(SdkTracerProvider);

/// An export if the variables ask for one, on the runtime in whose context this is called.
///
/// # Errors
/// The variables are wrong.
pub(super) fn start(service: &'static str) -> Result<Option<Export>, ExporterBuildError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is =
        |name: &str, value: &str| variable(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
    let endpoint = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
    if endpoint.is_none() || is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .build()?;
    let room = variable("OTEL_BSP_MAX_QUEUE_SIZE").and_then(|size| size.parse().ok());
    let processor = Bounded {
        next: BatchSpanProcessor::builder(Counted(exporter)).build(),
        room: room.unwrap_or(QUEUE),
    };
    let mut resource = Resource::builder().with_attribute(KeyValue::new(
        "service.version",
        essaim_proto::VERSION.as_str(),
    ));
    let named =
        variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|all| all.contains("service.name="));
    if variable("OTEL_SERVICE_NAME").is_none() && !named {
        resource = resource.with_service_name(service);
    }
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_resource(resource.build())
        .build();
    Ok(Some(Export(provider)))
}

impl Export {
    /// Turns spans into OpenTelemetry's.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("essaim"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(is_wanted))
    }

    /// Sends what still waits, for two seconds at most.
    pub(super) fn end(self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::debug!(%error, "the last spans did not reach the collector");
        }
    }
}

/// Our own spans and the warnings in them. Not a job's, which may last for years: each epoch and query begins a trace.
fn is_wanted(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("essaim")
        && match metadata.is_span() {
            true => metadata.name() != "job",
            false => *metadata.level() <= Level::WARN,
        }
}

/// Lets no more spans wait than there is room for. The queue behind has as much room, so it never drops one by itself.
#[derive(Debug)]
struct Bounded {
    next: BatchSpanProcessor,
    room: usize,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.next.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && SPANS.enter(self.room) {
            self.next.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// Counts what the collector took.
#[derive(Debug)]
struct Counted(opentelemetry_otlp::SpanExporter);

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let taken = self.0.export(batch).await;
        SPANS.leave(count, taken.is_ok());
        taken
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}
