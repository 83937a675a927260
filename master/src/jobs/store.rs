//! Jobs in the state dir: one JSON document a job, `jobs/<id>.json`, replaced whole by the master that owns the dir.

use crate::jobs::model::{JobKind, JobRecord, now_ms};
use crate::jobs::state_dir::StateDir;
use crate::stream::checkpoint;
use bytes::Bytes;
use essaim_common::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;

/// Jobs that are read at a time when a master starts.
const READS_AT_ONCE: usize = 16;
/// Claims of masters that are kept.
const CLAIMS_KEPT: usize = 2;

/// The state dir's half that holds jobs, and the claim of this master to it.
///
/// Masters number themselves: each makes `masters/<n>` at its start, one above the highest. A master whose number has
/// been passed owns the dir no longer, even if it was only asleep.
#[derive(Debug)]
pub(crate) struct Store {
    dir: Arc<StateDir>,
    master: u64,
}

impl Store {
    /// Opens a state dir and takes it over from the master before.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        let dir = StateDir::open(url).await?;
        let master = claim(&dir).await?;
        for prefix in ["jobs", "masters"] {
            dir.remove_half_written(prefix).await?;
        }
        Ok(Self { dir, master })
    }

    /// Where this master keeps everything.
    pub(crate) fn dir(&self) -> &Arc<StateDir> {
        &self.dir
    }

    /// Whether this master still owns the state dir: kind `Invalid` if another has taken it over.
    pub(crate) async fn check_fence(&self) -> Result<()> {
        let (own_name, next_name) = (claim_name(self.master), claim_name(self.master + 1));
        let (own, next) =
            tokio::try_join!(self.dir.exists(&own_name), self.dir.exists(&next_name))?;
        if own && !next {
            return Ok(());
        }
        // The claim itself goes when two masters have come after it; or with the whole folder, when a disk is gone.
        if !own && !next {
            let claims = self.dir.list("masters").await?;
            if claims.iter().all(|claim| claim.name < own_name) {
                self.dir.errors.inc();
                return Err(Error::unavailable(format!(
                    "the state dir {} has lost this master's claim {own_name}: is it still mounted?",
                    self.dir.show("")
                )));
            }
        }
        Err(Error::invalid(format!(
            "another master has taken over the state dir {}: this one writes nothing more there; stop it",
            self.dir.show("")
        )))
    }

    /// All jobs, oldest first; batch jobs that have ended in short.
    pub(crate) async fn load(&self) -> Result<Vec<JobRecord>> {
        let listed = self.dir.list("jobs").await?;
        let reads = listed.iter().map(|object| self.read(&object.name));
        let mut records: Vec<JobRecord> = futures::stream::iter(reads)
            .buffer_unordered(READS_AT_ONCE)
            .try_filter_map(|record| async { Ok(record) })
            .map_ok(|mut record| {
                if record.kind == JobKind::Batch && record.state.is_final() {
                    record.shorten();
                }
                record
            })
            .try_collect()
            .await?;
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// A job as it was last stored.
    pub(crate) async fn get(&self, id: &str) -> Result<Option<JobRecord>> {
        self.read(&job_name(id)).await
    }

    async fn read(&self, name: &str) -> Result<Option<JobRecord>> {
        let Some(bytes) = self.dir.get(name).await? else {
            return Ok(None);
        };
        let record = serde_json::from_slice(&bytes).map_err(|e| {
            Error::invalid(format!(
                "{} is no job of this version: {e}; move it away",
                self.dir.show(name)
            ))
        })?;
        Ok(Some(record))
    }

    /// Writes a job, unless another master owns the state dir.
    pub(crate) async fn save(&self, record: &JobRecord) -> Result<()> {
        self.check_fence().await?;
        let json = serde_json::to_vec(record).map_err(|e| self.dir.trouble(e))?;
        self.dir
            .put(&job_name(&record.id), vec![Bytes::from(json)])
            .await
    }

    /// Forgets a job and its checkpoint, if it has one.
    pub(crate) async fn remove(&self, id: &str, kind: JobKind) {
        let removed = async {
            self.check_fence().await?;
            // The record goes last: while it is there, whoever finds it can find the checkpoint to remove.
            if kind == JobKind::Streaming {
                checkpoint::discard(&self.dir, id).await?;
            }
            self.dir.remove(&job_name(id)).await
        };
        if let Err(error) = removed.await {
            tracing::warn!(job = %id, %error, "an old job stays in the state dir");
        }
    }
}

fn job_name(id: &str) -> String {
    format!("jobs/{id}.json")
}

fn claim_name(master: u64) -> String {
    format!("masters/{master:020}")
}

/// Takes the next number, and removes claims that no longer matter.
async fn claim(dir: &StateDir) -> Result<u64> {
    let mut claims: Vec<u64> = dir
        .list("masters")
        .await?
        .iter()
        .filter_map(|found| found.name.rsplit('/').next()?.parse().ok())
        .collect();
    claims.sort_unstable();
    // Who it is: a claim whose outcome was not known is told from another's by it.
    let content = Bytes::from(format!(
        "{{\"claim\":\"{}\",\"time_ms\":{}}}\n",
        uuid::Uuid::new_v4(),
        now_ms()
    ));
    let mut master = claims.last().map_or(1, |last| last + 1);
    loop {
        let name = claim_name(master);
        if dir.create(&name, vec![content.clone()]).await?
            || dir.get(&name).await?.as_ref() == Some(&content)
        {
            break;
        }
        claims.push(master);
        master += 1;
    }
    claims.push(master);
    let surplus = claims.len().saturating_sub(CLAIMS_KEPT);
    for old in claims.into_iter().take(surplus) {
        dir.remove(&claim_name(old)).await?;
    }
    Ok(master)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::model::JobKind;
    use essaim_common::ErrorKind;

    #[tokio::test]
    async fn an_old_master_writes_no_job_once_another_has_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().to_str().unwrap();
        let old = Store::open(url).await.unwrap();
        let job = JobRecord::new(
            "id".to_owned(),
            "name".to_owned(),
            "SELECT 1".to_owned(),
            JobKind::Batch,
        );
        old.save(&job).await.unwrap();
        // Also when its own claim has been removed by those after it.
        for _ in 0..4 {
            let new = Store::open(url).await.unwrap();
            new.save(&job).await.unwrap();
            let error = old.save(&job).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("another master"), "{error}");
            assert_eq!(new.load().await.unwrap().len(), 1);
        }
        let claims = old.dir().list("masters").await.unwrap();
        assert_eq!(claims.len(), CLAIMS_KEPT);
    }
}
