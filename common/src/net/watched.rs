//! What comes from files, and is read again when they change.

use crate::error::Result;
use parking_lot::{Mutex, RwLock};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file looked when it was read: another one of these, another content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    bytes: u64,
    inode: u64,
}

/// A value and the files that it was read from. Files that cannot be used change nothing.
pub struct Watched<T> {
    /// For people: "tokens".
    what: &'static str,
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T> + Send + Sync>,
    value: RwLock<Arc<T>>,
    stamps: Mutex<Vec<Option<Stamp>>>,
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The value may be secret.
        write!(f, "Watched({} of {})", self.what, self.shown())
    }
}

impl<T> Watched<T> {
    /// Reads the value for the first time.
    ///
    /// # Errors
    /// Those of `read`.
    pub(crate) fn open(
        what: &'static str,
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        // Before they are read: a change in between is found by the next refresh.
        let stamps = stamps(&files);
        Ok(Self {
            what,
            value: RwLock::new(Arc::new(read()?)),
            files,
            read: Box::new(read),
            stamps: Mutex::new(stamps),
        })
    }

    /// What counts now.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.read())
    }

    /// Looks at the files, and reads them if one has changed. Blocks while it does. A failure is logged once a change.
    pub(crate) fn refresh(&self) {
        let now = stamps(&self.files);
        let mut known = self.stamps.lock();
        if now == *known {
            return;
        }
        *known = now;
        match (self.read)() {
            Ok(value) => {
                tracing::info!("read the {} again from {}", self.what, self.shown());
                *self.value.write() = Arc::new(value);
            }
            Err(error) => {
                tracing::error!(%error, "the {} that were read before still count: those of now cannot be used", self.what);
            }
        }
    }

    fn shown(&self) -> String {
        let files = self.files.iter().map(|file| file.display().to_string());
        files.collect::<Vec<_>>().join(", ")
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| stamp(file)).collect()
}

/// Nothing if the file is away: a file that is written anew may be, for a moment.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Stamp {
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        bytes: metadata.len(),
        inode: metadata.ino(),
    })
}
