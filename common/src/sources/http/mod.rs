//! `STORED AS HTTP`: what a server answers as rows, once, or asked for again and again.
//!
//! The row's way: [`template`] makes the URLs; [`fetch`] asks for one of them, [`pages`] for all of its pages, and [`body`]
//! finds the records. In a batch the workers do that ([`reader`]); for an UNBOUNDED table the master does ([`poll`]), and
//! the records go by way of the journal ([`crate::sources::feed`]).

pub mod body;
mod check;
mod fetch;
mod pages;
mod poll;
mod reader;
mod template;

use crate::check::{Endpoint, Finding};
use crate::connector::{
    Connector, ConnectorTable, PlannedScan, ScanRequest, Source, SplitReader, TableSpec,
};
use crate::error::{Error, Result};
use crate::scan::project_schema;
use crate::sources::feed::client;
use crate::sources::feed::plan::{Metadata, RowPlan};
use crate::sources::feed::shown::Veiled;
use crate::sources::feed::stream::{EntryReader, FeedStream};
use crate::stream::{StreamOptions, StreamSource};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use fetch::{Fetcher, Requests};
use pages::{PagePlan, Pages};
use poll::Poll;
use reader::{HttpPlan, HttpReader, split_of};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// The columns that follow the declared ones.
const METADATA: [(&str, Metadata); 3] = [
    ("_url", Metadata::Origin),
    ("_fetched_at", Metadata::At),
    ("_status", Metadata::Status),
];

/// The connector.
#[derive(Debug)]
pub struct Http;

/// A declaration, checked.
struct Declared {
    urls: Vec<Url>,
    plan: HttpPlan,
    schema: SchemaRef,
    interval: Duration,
    streaming: StreamOptions,
}

impl Declared {
    fn new(mut spec: TableSpec) -> Result<Self> {
        let (rows, schema) = RowPlan::take(&mut spec, &METADATA)?;
        let options = &mut spec.options;
        let urls = template::urls(spec.location.expose(), options)?;
        let plan = HttpPlan {
            requests: Requests::take(options)?,
            pages: PagePlan::take(options)?,
            rows,
            limit: None,
        };
        let interval = Duration::from_millis(options.timeout_ms("interval", 60_000)?);
        let streaming = StreamOptions::take(options, Some(&schema))?;
        spec.options.finish()?;
        Ok(Self {
            urls,
            plan,
            schema,
            interval,
            streaming,
        })
    }
}

#[async_trait]
impl Connector for Http {
    fn name(&self) -> &'static str {
        "HTTP"
    }

    async fn table(&self, spec: TableSpec) -> Result<ConnectorTable> {
        let declared = Declared::new(spec)?;
        let Declared {
            urls, plan, schema, ..
        } = declared;
        let pages = Pages::new(Fetcher::new(plan.requests.clone()), plan.pages.clone())?;
        let poll = Poll {
            pages: Arc::new(pages),
            urls: Veiled(urls.clone()),
            interval: declared.interval,
            on_error: plan.rows.on_error,
        };
        let stream = FeedStream::new(
            Arc::new(poll),
            Arc::clone(&schema),
            plan.rows.clone(),
            declared.streaming,
        );
        let source = HttpSource {
            schema: Arc::clone(&schema),
            urls: Veiled(urls),
            plan,
            stream: Arc::new(stream),
        };
        Ok(ConnectorTable {
            schema: Some(schema),
            source: Some(Arc::new(source)),
            sink: None,
        })
    }

    fn reader(&self, encoded: &[u8], schema: SchemaRef) -> Result<Arc<dyn SplitReader>> {
        /// Requests to make, or entries of the journal to read.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Plan {
            Requests(Box<HttpPlan>),
            Entries(RowPlan),
        }
        let plan = serde_json::from_slice(encoded)
            .map_err(|e| Error::internal(format!("an HTTP scan of another version: {e}")))?;
        Ok(match plan {
            Plan::Requests(plan) => Arc::new(HttpReader {
                schema,
                plan: *plan,
            }),
            Plan::Entries(plan) => Arc::new(EntryReader { schema, plan }),
        })
    }

    fn endpoints(&self, spec: TableSpec) -> Result<Vec<Endpoint>> {
        let declared = Declared::new(spec)?;
        let Some(url) = declared.urls.first() else {
            return Ok(Vec::new());
        };
        let access = &declared.plan.requests.access;
        Ok(vec![client::endpoint(self.name(), access, url)?])
    }

    async fn reach(&self, payload: &[u8], deadline: Duration) -> Result<String> {
        client::reach(payload, deadline).await
    }
}

/// The URLs of one table.
#[derive(Debug)]
struct HttpSource {
    schema: SchemaRef,
    urls: Veiled<Vec<Url>>,
    plan: HttpPlan,
    stream: Arc<FeedStream>,
}

impl HttpSource {
    /// What reads some columns, at most `limit` rows of each split.
    fn scan(&self, projection: &[usize], limit: Option<usize>) -> Result<HttpReader> {
        Ok(HttpReader {
            schema: project_schema(&self.schema, projection)?,
            plan: HttpPlan {
                limit,
                ..self.plan.clone()
            },
        })
    }
}

#[async_trait]
impl Source for HttpSource {
    async fn plan(&self, request: ScanRequest<'_>) -> Result<PlannedScan> {
        let hidden = &self.plan.requests.access.hidden;
        let urls = &self.urls.0;
        // Workers know nothing of each other: one of them keeps the rate, by asking for all.
        let splits = match self.plan.requests.requests_per_second {
            Some(_) => vec![split_of(urls, format!("{} URLs", urls.len()))?],
            None => urls
                .iter()
                .map(|url| split_of(std::slice::from_ref(url), hidden.url(url)))
                .collect::<Result<_>>()?,
        };
        Ok(PlannedScan {
            reader: Arc::new(self.scan(request.projection, request.limit)?),
            splits,
        })
    }

    fn stream(&self) -> Option<Arc<dyn StreamSource>> {
        Some(Arc::clone(&self.stream) as _)
    }

    async fn findings(&self, unbounded: bool) -> Result<Vec<Finding>> {
        check::source(self, unbounded).await
    }
}
