//! Files as a table that DataFusion does not read, such as multi-line JSON and compressed texts: each is a split.

use super::declared::Declared;
use super::place::Place;
use super::plan::FileSplit;
use crate::connector::{PlannedScan, ScanRequest, Source, Split};
use crate::error::{Error, Result};
use async_trait::async_trait;

/// Files that are read from their beginning to their end.
#[derive(Debug)]
pub(super) struct Documents {
    pub declared: Declared,
    pub place: Place,
}

#[async_trait]
impl Source for Documents {
    async fn plan(&self, request: ScanRequest<'_>) -> Result<PlannedScan> {
        let files = self.place.files().await?;
        let splits = files.into_iter().map(|file| {
            let (label, bytes) = (self.place.storage.url(&file.path), file.size);
            let files = vec![file];
            let payload = serde_json::to_vec(&FileSplit { files, rows: None })
                .map_err(|e| Error::internal(e.to_string()))?;
            Ok(Split {
                label,
                payload,
                partition: String::new(),
                rows: None,
                bytes: Some(bytes),
            })
        });
        Ok(PlannedScan {
            reader: self.declared.reader(request.projection)?,
            splits: splits.collect::<Result<_>>()?,
        })
    }
}
