//! The table side of files that are read continuously.

use super::place::Place;
use crate::check::Finding;
use crate::connector::{PlannedScan, ScanRequest, Source};
use crate::error::{Error, Result};
use crate::stream::StreamSource;
use async_trait::async_trait;
use std::sync::Arc;

/// Files that are only ever read as a stream.
#[derive(Debug)]
pub(super) struct Continuous {
    pub stream: Arc<dyn StreamSource>,
    pub place: Place,
}

#[async_trait]
impl Source for Continuous {
    async fn plan(&self, _request: ScanRequest<'_>) -> Result<PlannedScan> {
        Err(Error::internal("a stream of files is planned as a table"))
    }

    fn stream(&self) -> Option<Arc<dyn StreamSource>> {
        Some(Arc::clone(&self.stream))
    }

    async fn findings(&self, _unbounded: bool) -> Result<Vec<Finding>> {
        if self.place.file().await?.is_some() || !self.place.list().await?.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Finding::note(
            format!("{}: there are no files yet", self.place.url()),
            "the job will wait for the first one; check that LOCATION is right",
        )])
    }
}
