//! A file as it was when it was found: it is read as that, or not at all.

use crate::error::{Error, Result};
use crate::object_stores::{self, failed};
use bytes::Bytes;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::error::DataFusionError;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

/// The bytes of a file, piece by piece.
pub(super) type Pieces = BoxStream<'static, Result<Bytes>>;

/// A file as a listing showed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileVersion {
    /// Its path in the store.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// When it was written last, ms since the epoch.
    pub modified: i64,
    /// The store's name for this content, if it gives one that lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// A store that files are read from, and its name: `s3://bucket` or `file://`.
#[derive(Debug, Clone)]
pub(super) struct Storage {
    pub store: Arc<dyn ObjectStore>,
    pub base: String,
}

impl Storage {
    /// The store of a base.
    ///
    /// # Errors
    /// Those of [`object_stores::store`].
    pub fn of_base(base: &str) -> Result<Self> {
        Ok(Self {
            store: object_stores::store(base)?,
            base: base.to_owned(),
        })
    }

    /// A file as a listing shows it. A local file's ETag holds the number of its inode, which a copy of the folder
    /// changes: size and time say enough.
    pub fn version(&self, meta: &ObjectMeta) -> FileVersion {
        FileVersion {
            path: meta.location.to_string(),
            size: meta.size,
            modified: meta.last_modified.timestamp_millis(),
            etag: meta.e_tag.clone().filter(|_| !self.is_local()),
        }
    }

    fn is_local(&self) -> bool {
        self.base.starts_with("file:")
    }

    /// The file's URL, for people and for the column `_file`.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// Asks for a file, or a range of its bytes. `None` if it is gone.
    ///
    /// # Errors
    /// It is not the one that was found; the store is out of reach.
    pub async fn get(
        &self,
        file: &FileVersion,
        range: Option<Range<u64>>,
    ) -> Result<Option<GetResult>> {
        let path = Path::parse(&file.path)
            .map_err(|e| Error::internal(format!("{}: {e}", self.url(&file.path))))?;
        let options = GetOptions {
            // A range of nothing is refused by stores.
            head: range.as_ref().map_or(file.size == 0, Range::is_empty),
            range: range
                .filter(|range| !range.is_empty())
                .map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let got = match self.store.get_opts(&path, options).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(self.url(&file.path), &error)),
        };
        let now = self.version(&got.meta);
        let same = now.size == file.size
            && match (&now.etag, &file.etag) {
                (Some(now), Some(found)) => now == found,
                // A listing of S3 and an answer give the time in different precision.
                _ => !self.is_local() || now.modified == file.modified,
            };
        if same {
            return Ok(Some(got));
        }
        Err(Error::invalid(format!(
            "{}: the file has changed since it was found (it had {} bytes then and has {} now): \
             let files appear whole, written under another name and then renamed, and put what is new into a new file",
            self.url(&file.path),
            file.size,
            now.size
        )))
    }

    /// The error of a file that is not there any more.
    pub fn gone(&self, file: &FileVersion) -> Error {
        Error::invalid(format!(
            "{}: the file is gone, and was not read yet: put it back, or set ignore_missing_files 'true' to go on without such files",
            self.url(&file.path)
        ))
    }

    /// The file's bytes as they are stored, or a range of them.
    ///
    /// # Errors
    /// As [`Self::get`]; those of the stream are the store's.
    pub async fn raw(
        &self,
        file: &FileVersion,
        range: Option<Range<u64>>,
    ) -> Result<Option<Pieces>> {
        let is_empty = range.as_ref().map_or(file.size == 0, Range::is_empty);
        let Some(got) = self.get(file, range).await? else {
            return Ok(None);
        };
        // Then only the file's metadata was asked for.
        if is_empty {
            return Ok(Some(futures::stream::empty().boxed()));
        }
        let url = self.url(&file.path);
        let pieces = got.into_stream().map_err(move |e| failed(&url, &e));
        Ok(Some(pieces.boxed()))
    }

    /// The file's content, decompressed.
    ///
    /// # Errors
    /// As [`Self::raw`]; of the stream besides: what is not compressed as it should be.
    pub async fn content(
        &self,
        file: &FileVersion,
        compression: FileCompressionType,
    ) -> Result<Option<Pieces>> {
        let Some(raw) = self.raw(file, None).await? else {
            return Ok(None);
        };
        if !compression.is_compressed() {
            return Ok(Some(raw));
        }
        // What the store said is kept aside: the decoder wraps it beyond recognition.
        let stored: Arc<Mutex<Option<Error>>> = Arc::default();
        let aside = Arc::clone(&stored);
        let raw = raw.map_err(move |error| {
            *aside.lock() = Some(error.clone());
            DataFusionError::from(error)
        });
        let url = self.url(&file.path);
        let content = compression.convert_stream(raw.boxed())?.map_err(move |e| {
            let broken = || Error::data(format!("{url}: the compressed file is broken: {e}"));
            stored.lock().take().unwrap_or_else(broken)
        });
        Ok(Some(content.boxed()))
    }
}

/// How a file is compressed: as the table says, or as its name does.
pub(super) fn compression_of(option: Option<&str>, path: &str) -> FileCompressionType {
    let by_name = || path.rsplit_once('.').map_or("", |(_, extension)| extension);
    let name = option.unwrap_or_else(by_name);
    match name {
        "" => FileCompressionType::UNCOMPRESSED,
        name => FileCompressionType::from_str(name).unwrap_or(FileCompressionType::UNCOMPRESSED),
    }
}
