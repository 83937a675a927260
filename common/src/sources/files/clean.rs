//! What becomes of files that have been read: `clean_source` and `source_archive_dir`, as in Spark.

use super::file::FileVersion;
use super::place::Place;
use crate::error::{Error, Result};
use crate::object_stores::{self, failed};
use crate::options::Options;
use futures::StreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;

/// Files that are cleaned up at a time.
const REQUESTS: usize = 16;

/// What becomes of a file once all sinks have its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CleanUp {
    Off,
    Delete,
    /// It is moved below this folder of the same store, under its whole path.
    Archive(Path),
}

/// The words of the option.
#[derive(Debug, Clone, Copy)]
enum Word {
    Off,
    Delete,
    Archive,
}

impl CleanUp {
    /// Takes the options.
    ///
    /// # Errors
    /// An archive that is missing, in another store, or among the files that are read.
    pub fn new(options: &mut Options, place: &Place) -> Result<Self> {
        let word = options.one_of(
            "clean_source",
            &[
                ("off", Word::Off),
                ("delete", Word::Delete),
                ("archive", Word::Archive),
            ],
        )?;
        let archive = options.text("source_archive_dir");
        let archive = match (word, archive) {
            (Word::Off, None) => return Ok(Self::Off),
            (Word::Delete, None) => return Ok(Self::Delete),
            (Word::Archive, Some(archive)) => archive,
            (Word::Archive, None) => {
                return Err(options.error(
                    "clean_source 'archive' needs source_archive_dir: name a folder of the same store",
                ));
            }
            (_, Some(_)) => {
                return Err(options.error("source_archive_dir needs clean_source 'archive'"));
            }
        };
        let (_, folder) = object_stores::open(&archive)
            .map_err(|e| options.error(format!("source_archive_dir: {e}")))?;
        let url = object_stores::parse(&archive)?;
        if format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default())
            != place.storage.base
        {
            return Err(options.error(format!(
                "source_archive_dir lies in another store than the files, which are in {}",
                place.storage.base
            )));
        }
        let below = folder.prefix_match(&place.folder);
        if below.is_some_and(|mut names| !names.any(|name| name.as_ref().starts_with(['_', '.']))) {
            return Err(options.error(
                "source_archive_dir lies in the folder that is watched: name another, or one in it whose name begins with _",
            ));
        }
        Ok(Self::Archive(folder))
    }

    /// Cleans up behind files that have been read. One that is not the one that was read any more stays, and so does one
    /// that cannot be cleaned up: it is not read again, whatever happens.
    ///
    /// # Errors
    /// The first failure, after everything has been tried.
    pub async fn run(&self, place: &Place, files: &[FileVersion]) -> Result<()> {
        if *self == Self::Off {
            return Ok(());
        }
        let ended: Vec<Result<()>> = futures::stream::iter(files.to_vec())
            .map(|file| self.clean(place, file))
            .buffer_unordered(REQUESTS)
            .collect()
            .await;
        let failures = ended.iter().filter(|ended| ended.is_err()).count();
        match ended.into_iter().find_map(Result::err) {
            Some(first) => Err(first.context(format!(
                "{failures} of {} files that have been read were not cleaned up",
                files.len()
            ))),
            None => Ok(()),
        }
    }

    async fn clean(&self, place: &Place, file: FileVersion) -> Result<()> {
        let storage = &place.storage;
        let url = storage.url(&file.path);
        // An earlier start may have been here.
        if storage.get(&file, Some(0..0)).await?.is_none() {
            return Ok(());
        }
        let path = Path::parse(&file.path).map_err(|e| Error::internal(format!("{url}: {e}")))?;
        let ended = match self {
            Self::Off => Ok(()),
            Self::Delete => storage.store.delete(&path).await,
            Self::Archive(folder) => {
                let to: Path = folder.parts().chain(path.parts()).collect();
                storage.store.rename(&path, &to).await
            }
        };
        match ended {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(url, &error)),
        }
    }
}
