//! A folder that files come to, and one that a job's CSV goes to, for streams of files.

use crate::{SOON, wait_for};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// Both folders, gone with it.
#[derive(Debug)]
pub struct Folders {
    dir: TempDir,
}

impl Folders {
    /// Makes them.
    ///
    /// # Errors
    /// The disk's.
    pub fn new() -> Result<Self> {
        let dir = TempDir::new()?;
        fs::create_dir(dir.path().join("in"))?;
        Ok(Self { dir })
    }

    /// Where files come to.
    pub fn input(&self) -> PathBuf {
        self.dir.path().join("in")
    }

    /// Where the job writes.
    pub fn output(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Any other place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lets a file appear whole, as if it had been written so many seconds after the beginning of 2026.
    ///
    /// # Errors
    /// The disk's.
    pub fn put(&self, name: &str, written: u64, content: impl AsRef<[u8]>) -> Result<()> {
        let (hidden, path) = (self.dir.path().join("new"), self.input().join(name));
        fs::write(&hidden, content)?;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + written);
        File::options()
            .write(true)
            .open(&hidden)?
            .set_modified(time)?;
        Ok(fs::rename(hidden, path)?)
    }

    /// The records of the output, without headers: those of one epoch after those of the one before.
    ///
    /// # Errors
    /// The disk's.
    pub fn epochs(&self) -> Result<Vec<Vec<String>>> {
        let mut files: Vec<PathBuf> = list(&self.output())?;
        files.sort();
        let read = |file: &PathBuf| -> Result<Vec<String>> {
            let text = fs::read_to_string(file)?;
            Ok(text.lines().skip(1).map(str::to_owned).collect())
        };
        files.iter().map(read).collect()
    }

    /// All records of the output.
    ///
    /// # Errors
    /// The disk's.
    pub fn records(&self) -> Result<Vec<String>> {
        Ok(self.epochs()?.concat())
    }

    /// Waits until the output has at least so many records, and returns them.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn until(&self, count: usize) -> Result<Vec<String>> {
        let mut found = 0;
        let what = format!("{count} records");
        let waited = wait_for(&what, SOON, async || {
            let records = self.records()?;
            found = records.len();
            Ok((found >= count).then_some(records))
        });
        waited.await.with_context(|| format!("there are {found}"))
    }
}

/// The files of a folder that readers see; none if there is no such folder.
///
/// # Errors
/// The disk's.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_hidden = entry.file_name().to_string_lossy().starts_with(['_', '.']);
        if entry.file_type()?.is_file() && !is_hidden {
            files.push(entry.path());
        }
    }
    Ok(files)
}
