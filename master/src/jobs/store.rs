//! Jobs in the state dir: one JSON document a job, `jobs/<id>.json`, replaced whole.

use crate::jobs::model::JobRecord;
use essaim_common::{Error, Result, object_stores};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;

/// The state dir's half that holds jobs.
#[derive(Debug)]
pub(crate) struct Store {
    url: String,
    store: Arc<dyn ObjectStore>,
    root: Path,
}

impl Store {
    pub(crate) fn open(url: &str) -> Result<Self> {
        let (store, root) = object_stores::open(url)?;
        Ok(Self {
            url: url.to_owned(),
            store,
            root: root.join("jobs"),
        })
    }

    fn path(&self, id: &str) -> Path {
        self.root.clone().join(format!("{id}.json"))
    }

    fn trouble(&self, error: impl std::fmt::Display) -> Error {
        Error::unavailable(format!("state dir {}: {error}", self.url))
    }

    /// All jobs, oldest first.
    pub(crate) async fn load(&self) -> Result<Vec<JobRecord>> {
        let listed: Vec<_> = self
            .store
            .list(Some(&self.root))
            .try_collect()
            .await
            .map_err(|e| self.trouble(e))?;
        let mut records = Vec::with_capacity(listed.len());
        for object in listed {
            let bytes = async { self.store.get(&object.location).await?.bytes().await }
                .await
                .map_err(|e| self.trouble(e))?;
            let record: JobRecord = serde_json::from_slice(&bytes).map_err(|e| {
                Error::invalid(format!(
                    "state dir {}: {} is no job of this version: {e}; move it away",
                    self.url, object.location
                ))
            })?;
            records.push(record);
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    pub(crate) async fn save(&self, record: &JobRecord) -> Result<()> {
        let json = serde_json::to_vec(record).map_err(|e| self.trouble(e))?;
        self.store
            .put(&self.path(&record.id), json.into())
            .await
            .map_err(|e| self.trouble(e))?;
        Ok(())
    }

    pub(crate) async fn remove(&self, id: &str) {
        if let Err(error) = self.store.delete(&self.path(id)).await {
            tracing::warn!(job = %id, %error, "an old job stays in the state dir");
        }
    }
}
