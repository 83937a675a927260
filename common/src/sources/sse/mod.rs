//! `STORED AS SSE`: a stream of server-sent events as an UNBOUNDED table.
//!
//! The row's way: the master listens ([`listen`]) and takes the bytes for events ([`frames`]), which go by way of the
//! journal to the workers ([`crate::sources::feed`]).

pub mod frames;
mod listen;

use crate::check::{Endpoint, Finding};
use crate::connector::{
    Connector, ConnectorTable, PlannedScan, ScanRequest, Source, SplitReader, TableSpec,
};
use crate::error::{Error, Result};
use crate::sources::feed::client::{self, Access, in_clear};
use crate::sources::feed::plan::{Metadata, OnError, RowPlan};
use crate::sources::feed::shown::Veiled;
use crate::sources::feed::stream::{EntryReader, FeedStream};
use crate::stream::{StreamOptions, StreamSource};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use listen::Listener;
use std::sync::Arc;
use std::time::Duration;

/// The columns that follow the declared ones.
const METADATA: [(&str, Metadata); 3] = [
    ("_event", Metadata::Origin),
    ("_id", Metadata::Id),
    ("_received_at", Metadata::At),
];

/// The connector.
#[derive(Debug)]
pub struct Sse;

/// A declaration, checked.
struct Declared {
    listener: Listener,
    schema: SchemaRef,
    rows: RowPlan,
    streaming: StreamOptions,
}

impl Declared {
    fn new(mut spec: TableSpec) -> Result<Self> {
        let (rows, schema) = RowPlan::take(&mut spec, &METADATA)?;
        let options = &mut spec.options;
        let listener = Listener {
            url: Veiled(client::location(options, spec.location.expose())?),
            events: options.names("events"),
            heartbeat_timeout: Duration::from_millis(
                options.timeout_ms("heartbeat_timeout", 60_000)?,
            ),
            on_error: rows.on_error,
            access: Access::take(options)?,
        };
        let streaming = StreamOptions::take(options, Some(&schema))?;
        if !spec.unbounded {
            return Err(options
                .error("a stream of events has no end: write CREATE UNBOUNDED EXTERNAL TABLE"));
        }
        spec.options.finish()?;
        Ok(Self {
            listener,
            schema,
            rows,
            streaming,
        })
    }
}

#[async_trait]
impl Connector for Sse {
    fn name(&self) -> &'static str {
        "SSE"
    }

    async fn table(&self, spec: TableSpec) -> Result<ConnectorTable> {
        let declared = Declared::new(spec)?;
        let listener = Arc::new(declared.listener);
        let stream = FeedStream::new(
            Arc::clone(&listener) as _,
            Arc::clone(&declared.schema),
            declared.rows,
            declared.streaming,
        );
        Ok(ConnectorTable {
            schema: Some(declared.schema),
            source: Some(Arc::new(SseSource {
                listener,
                stream: Arc::new(stream),
            })),
            sink: None,
        })
    }

    fn reader(&self, encoded: &[u8], schema: SchemaRef) -> Result<Arc<dyn SplitReader>> {
        let plan = serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("an SSE scan of another version: {e}")))?;
        Ok(Arc::new(EntryReader { schema, plan }))
    }

    fn endpoints(&self, spec: TableSpec) -> Result<Vec<Endpoint>> {
        let Listener { access, url, .. } = Declared::new(spec)?.listener;
        Ok(vec![client::endpoint(self.name(), &access, &url.0)?])
    }

    async fn reach(&self, payload: &[u8], deadline: Duration) -> Result<String> {
        client::reach(payload, deadline).await
    }
}

/// The stream of one table.
#[derive(Debug)]
struct SseSource {
    listener: Arc<Listener>,
    stream: Arc<FeedStream>,
}

#[async_trait]
impl Source for SseSource {
    async fn plan(&self, _request: ScanRequest<'_>) -> Result<PlannedScan> {
        Err(Error::internal("a stream of events is read in a batch"))
    }

    fn stream(&self) -> Option<Arc<dyn StreamSource>> {
        Some(Arc::clone(&self.stream) as _)
    }

    async fn findings(&self, _unbounded: bool) -> Result<Vec<Finding>> {
        let mut found = vec![Finding::note(
            "events cannot be read again: a new job begins with what comes then",
            "INSERT them into a topic first, and read that, if other jobs want them too",
        )];
        if in_clear(&self.listener.url.0, &self.listener.access) {
            found.push(Finding::warning(
                "LOCATION is http://, and the table has credentials: whoever is on the way can read them",
                "write https:// if the server speaks it",
            ));
        }
        if self.listener.on_error == OnError::Fail {
            found.push(Finding::warning(
                "on_error is 'fail': the first event that does not decode ends the job",
                "set on_error 'skip', or keep it if that is what you want",
            ));
        }
        Ok(found)
    }
}
