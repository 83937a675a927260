//! The sink committer of files: a manifest decides, renames follow, a marker remembers.

use super::{FileWriter, Format, is_visible, parent, superseded};
use crate::connector::{Begin, Part, SinkCommitter, SinkRun};
use crate::error::{Error, Result};
use crate::object_stores::failed;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a commit does. Once it is written the run is committed; doing it twice is doing it once.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// From the staging place to the location; paths in the store.
    renames: Vec<(String, String)>,
    /// Files that `overwrite` replaces.
    deletes: Vec<String>,
}

/// Who writes this query's rows, and how far they are committed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Marker {
    generation: u64,
    epoch: Option<u64>,
}

/// Commits one run into a folder, or into one file of it.
#[derive(Debug)]
pub(super) struct FileCommitter {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    /// What this generation stages.
    staging: Path,
    /// The one file, with `single_file`.
    target: Option<Path>,
    overwrite: bool,
    run: SinkRun,
    /// Writes the file of an empty result.
    writer: FileWriter,
    schema: SchemaRef,
    /// The files that readers saw when the run began.
    before: parking_lot::Mutex<Vec<Path>>,
}

impl FileCommitter {
    #[allow(clippy::too_many_arguments)] // Called once, beside the one who knows them all.
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        folder: Path,
        staging: Path,
        target: Option<Path>,
        overwrite: bool,
        run: SinkRun,
        writer: FileWriter,
        schema: SchemaRef,
    ) -> Self {
        Self {
            store,
            folder,
            staging,
            target,
            overwrite,
            run,
            writer,
            schema,
            before: parking_lot::Mutex::default(),
        }
    }

    /// What all generations of the run stage, and the manifest of the one that commits.
    fn run_staging(&self) -> Path {
        parent(&self.staging)
    }

    fn manifest_path(&self) -> Path {
        self.run_staging().join("manifest")
    }

    fn marker_path(&self) -> Path {
        let run = self.run.name();
        // One marker for all epochs of a query.
        let query = run
            .rsplit_once('_')
            .map_or(run.as_str(), |(query, _)| query);
        self.folder.clone().join("_essaim_commits").join(query)
    }

    async fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        let bytes = match self.store.get(path).await {
            Ok(found) => found.bytes().await.map_err(|e| failed(path, &e))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(path, &error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::internal(format!("{path} is of another version: {e}")))
    }

    async fn put(&self, path: &Path, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|e| Error::internal(e.to_string()))?;
        self.store
            .put(path, PutPayload::from(bytes))
            .await
            .map(drop)
            .map_err(|e| failed(path, &e))
    }

    /// The marker; refuses to go on if another run of the job has taken over.
    async fn marker(&self) -> Result<Option<Marker>> {
        let marker: Option<Marker> = self.read(&self.marker_path()).await?;
        match marker {
            Some(marker) if marker.generation > self.run.generation => {
                Err(superseded(&self.folder, &self.run, marker.generation))
            }
            marker => Ok(marker),
        }
    }

    async fn list(&self, folder: &Path) -> Result<Vec<Path>> {
        self.store
            .list(Some(folder))
            .map_ok(|file| file.location)
            .try_collect()
            .await
            .map_err(|e| failed(folder, &e))
    }

    async fn visible(&self) -> Result<Vec<Path>> {
        let found = match &self.target {
            Some(target) => match self.store.head(target).await {
                Ok(_) => vec![target.clone()],
                Err(object_store::Error::NotFound { .. }) => Vec::new(),
                Err(error) => return Err(failed(target, &error)),
            },
            None => self.list(&self.folder).await?,
        };
        Ok(found
            .into_iter()
            .filter(|file| is_visible(&self.folder, file))
            .collect())
    }

    /// Does what the manifest says, from wherever an earlier attempt stopped.
    async fn finish(&self, manifest: &Manifest) -> Result<()> {
        for (from, to) in &manifest.renames {
            let (from, to) = (Path::from(from.as_str()), Path::from(to.as_str()));
            match self.store.rename(&from, &to).await {
                Ok(()) => {}
                // Renamed before, unless it is not there either.
                Err(object_store::Error::NotFound { .. }) => {
                    self.store.head(&to).await.map_err(|e| {
                        Error::internal(format!("committed file {from} is lost: {e}"))
                    })?;
                }
                Err(error) => return Err(failed(&to, &error)),
            }
        }
        for file in &manifest.deletes {
            self.delete(&Path::from(file.as_str())).await?;
        }
        let done = Marker {
            generation: self.run.generation,
            epoch: Some(self.run.epoch),
        };
        self.put(&self.marker_path(), &done).await?;
        self.forget_manifest().await
    }

    /// Once the marker says that the run is committed.
    async fn forget_manifest(&self) -> Result<()> {
        self.clear_staging().await?;
        self.delete(&self.manifest_path()).await?;
        self.remove_empty(&[self.run_staging(), parent(&self.run_staging())])
            .await;
        Ok(())
    }

    async fn delete(&self, file: &Path) -> Result<()> {
        match self.store.delete(file).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(file, &error)),
        }
    }

    /// Deletes what this generation and lower ones staged; neither the manifest nor what a successor stages.
    async fn clear_staging(&self) -> Result<()> {
        let run = self.run_staging();
        let mut folders = vec![self.staging.clone()];
        for file in self.list(&run).await? {
            let generation: Option<u64> = file
                .prefix_match(&run)
                .and_then(|mut parts| parts.next()?.as_ref().parse().ok());
            if generation.is_some_and(|generation| generation <= self.run.generation) {
                self.delete(&file).await?;
                let folder = parent(&file);
                if !folders.contains(&folder) {
                    folders.push(folder);
                }
            }
        }
        folders.extend([run.clone(), parent(&run)]);
        self.remove_empty(&folders).await;
        Ok(())
    }

    /// A bucket has no folders. Folders that others still use are not empty and stay.
    async fn remove_empty(&self, folders: &[Path]) {
        if self.writer.base.starts_with("file:") {
            for folder in folders {
                let _ = tokio::fs::remove_dir(format!("/{folder}")).await;
            }
        }
    }

    async fn manifest(&self, parts: Vec<Part>) -> Result<Manifest> {
        let before = self.before.lock().clone();
        let mut staged: Vec<String> = parts
            .into_iter()
            .map(|part| part.payload)
            .filter(|name| !name.is_empty())
            .collect();
        // Readers find the columns of an empty result in an empty file. JSON has no place for them.
        let replaces_all = self.overwrite || before.is_empty();
        let says_columns = self.writer.layout.format != Format::Json || self.target.is_some();
        if staged.is_empty() && replaces_all && says_columns {
            staged.push(self.writer.write_empty(&self.schema).await?);
        }
        let extension = self.writer.layout.extension();
        let run = self.run.name();
        let renames: Vec<(String, String)> = staged
            .iter()
            .enumerate()
            .map(|(number, name)| {
                let to = self.target.clone().unwrap_or_else(|| {
                    let name = format!("part-{number:05}-{run}.{extension}");
                    self.folder.clone().join(name)
                });
                (self.staging.clone().join(name.as_str()).into(), to.into())
            })
            .collect();
        let deletes = before
            .into_iter()
            .filter(|_| self.overwrite)
            .map(String::from)
            .filter(|file| !renames.iter().any(|(_, to)| to == file))
            .collect();
        Ok(Manifest { renames, deletes })
    }
}

#[async_trait]
impl SinkCommitter for FileCommitter {
    async fn begin(&self) -> Result<Begin> {
        let marker = self.marker().await?;
        let epoch = marker.and_then(|marker| marker.epoch);
        if epoch.is_some_and(|epoch| epoch >= self.run.epoch) {
            self.forget_manifest().await?;
            return Ok(Begin::AlreadyCommitted);
        }
        // An earlier master decided to commit and died before it was done.
        if let Some(manifest) = self.read::<Manifest>(&self.manifest_path()).await? {
            self.finish(&manifest).await?;
            return Ok(Begin::AlreadyCommitted);
        }
        let before = self.visible().await?;
        if let (Some(target), false, false) = (&self.target, self.overwrite, before.is_empty()) {
            return Err(Error::invalid(format!(
                "file {target} exists, and one file cannot be appended to: use mode 'overwrite', or a folder as LOCATION"
            )));
        }
        *self.before.lock() = before;
        self.clear_staging().await?;
        let marker = Marker {
            generation: self.run.generation,
            epoch,
        };
        self.put(&self.marker_path(), &marker).await?;
        Ok(Begin::Fresh)
    }

    async fn commit(&self, parts: Vec<Part>) -> Result<()> {
        let marker = self.marker().await?;
        if marker.is_none_or(|marker| marker.generation != self.run.generation) {
            return Err(Error::invalid(format!(
                "{}: the run of job {} was aborted before it was committed",
                self.folder, self.run.job
            )));
        }
        let manifest = self.manifest(parts).await?;
        self.put(&self.manifest_path(), &manifest).await?;
        self.finish(&manifest).await
    }

    async fn abort(&self) {
        let undo = async {
            // Once decided, a commit is not undone: the next begin finishes it.
            if self
                .read::<Manifest>(&self.manifest_path())
                .await?
                .is_some()
            {
                return Ok(());
            }
            self.clear_staging().await?;
            let marker: Option<Marker> = self.read(&self.marker_path()).await?;
            let only_mine =
                |marker: Marker| marker.epoch.is_none() && marker.generation == self.run.generation;
            if marker.is_some_and(only_mine) {
                self.delete(&self.marker_path()).await?;
                let commits = self.folder.clone().join("_essaim_commits");
                self.remove_empty(&[commits]).await;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = undo.await {
            tracing::warn!(folder = %self.folder, %error, "a file sink's staging place was not cleared");
        }
    }
}
