//! Which files a stream has found, in their order, and how long it remembers those that have been read.

use super::file::FileVersion;
use crate::error::{Error, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};

/// The first byte of a summary: its layout.
const LAYOUT: u8 = 1;

/// Stands for a path: what is remembered of a million files must fit.
type PathHash = [u8; 16];

fn hash(path: &str) -> PathHash {
    let digest: [u8; 32] = Sha256::digest(path).into();
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    short
}

/// The files found so far. The number of a file is its position in the order in which they were found.
#[derive(Debug)]
pub(super) struct Known {
    max_age_ms: i64,
    /// The number of the first file of `files`.
    first: i64,
    /// Those that may have to be read, or cleaned up.
    files: VecDeque<FileVersion>,
    /// All that are remembered, with their times, ms.
    seen: HashMap<PathHash, i64>,
    /// The time of the youngest of all files ever found, ms.
    youngest: i64,
    /// Files older than this are not looked at any more: those that were read have been forgotten.
    forgotten: i64,
}

impl Known {
    /// Nothing yet.
    pub fn new(max_age_ms: i64) -> Self {
        Self {
            max_age_ms,
            first: 0,
            files: VecDeque::new(),
            seen: HashMap::new(),
            youngest: i64::MIN,
            forgotten: i64::MIN,
        }
    }

    /// What [`Self::summary`] said, and the entries behind it.
    ///
    /// # Errors
    /// Bytes of another version.
    pub fn restore(
        max_age_ms: i64,
        summary: Option<&Bytes>,
        first: i64,
        entries: &[Bytes],
        now_ms: i64,
    ) -> Result<Self> {
        let mut known = Self::new(max_age_ms);
        if let Some(summary) = summary {
            known.read(summary.clone()).ok_or_else(|| {
                Error::internal("the journal's summary of files is of another version")
            })?;
        }
        known.first = first;
        let files = entries.iter().map(|entry| {
            serde_json::from_slice(entry).map_err(|e| {
                Error::internal(format!("a file in the journal, of another version: {e}"))
            })
        });
        known.add(files.collect::<Result<Vec<FileVersion>>>()?, now_ms);
        Ok(known)
    }

    /// The number of the next file.
    pub fn end(&self) -> i64 {
        self.first + self.files.len() as i64
    }

    /// Of a listing, the files that are new: the oldest first.
    pub fn new_of(&self, listed: Vec<FileVersion>) -> Vec<FileVersion> {
        let is_new = |file: &FileVersion| {
            file.modified >= self.forgotten && !self.seen.contains_key(&hash(&file.path))
        };
        let mut new: Vec<FileVersion> = listed.into_iter().filter(is_new).collect();
        new.sort_by(|a, b| (a.modified, &a.path).cmp(&(b.modified, &b.path)));
        new
    }

    /// Adds files behind the others.
    pub fn add(&mut self, files: Vec<FileVersion>, now_ms: i64) {
        for file in files {
            self.seen.insert(hash(&file.path), file.modified);
            // A file from the future must not make all others old.
            self.youngest = self.youngest.max(file.modified.min(now_ms));
            self.files.push_back(file);
        }
        self.forgotten = self
            .forgotten
            .max(self.youngest.saturating_sub(self.max_age_ms));
        let forgotten = self.forgotten;
        self.seen.retain(|_, modified| *modified >= forgotten);
    }

    /// How many files are remembered.
    pub fn remembered(&self) -> usize {
        self.seen.len().max(self.files.len())
    }

    /// Files from number `from` to `to`.
    ///
    /// # Errors
    /// They are not there any more, or not yet.
    pub fn range(&self, from: i64, to: i64) -> Result<Vec<FileVersion>> {
        let index = |number: i64| usize::try_from(number - self.first).ok();
        match (index(from), index(to)) {
            (Some(from), Some(to)) if from <= to && to <= self.files.len() => {
                Ok(self.files.range(from..to).cloned().collect())
            }
            _ => Err(Error::internal(format!(
                "files {from} to {to} of a stream that knows {} to {}",
                self.first,
                self.end()
            ))),
        }
    }

    /// The number of the first file that is kept.
    pub fn first(&self) -> i64 {
        self.first
    }

    /// Drops the files before number `below`, which nobody reads again; they are remembered.
    pub fn drop_before(&mut self, below: i64) {
        let count = usize::try_from(below - self.first).unwrap_or(0);
        let count = count.min(self.files.len());
        self.files.drain(..count);
        self.first += count as i64;
    }

    /// What a new start must know besides the files from the first one kept on: layout, times, hashes with times.
    pub fn summary(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(17 + 24 * self.seen.len());
        bytes.put_u8(LAYOUT);
        bytes.put_i64(self.youngest);
        bytes.put_i64(self.forgotten);
        for (path, modified) in &self.seen {
            bytes.put_slice(path);
            bytes.put_i64(*modified);
        }
        bytes.freeze()
    }

    fn read(&mut self, mut bytes: Bytes) -> Option<()> {
        if bytes.len() < 17 || bytes.get_u8() != LAYOUT || !(bytes.len() - 16).is_multiple_of(24) {
            return None;
        }
        self.youngest = bytes.get_i64();
        self.forgotten = bytes.get_i64();
        while bytes.has_remaining() {
            let mut path = PathHash::default();
            bytes.copy_to_slice(&mut path);
            self.seen.insert(path, bytes.get_i64());
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn file(path: &str, modified: i64) -> FileVersion {
        FileVersion {
            path: path.to_owned(),
            size: 1,
            modified,
            etag: None,
        }
    }

    fn names(files: &[FileVersion]) -> Vec<&str> {
        files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn new_files_are_the_oldest_first_and_then_by_name() {
        let mut known = Known::new(100);
        let listed = vec![file("b", 5), file("c", 4), file("a", 5)];
        let new = known.new_of(listed.clone());
        assert_eq!(names(&new), ["c", "a", "b"]);
        known.add(new, NOW);
        assert!(known.new_of(listed).is_empty());
        assert_eq!(names(&known.range(1, 3).unwrap()), ["a", "b"]);
        assert!(known.range(2, 4).is_err());
    }

    #[test]
    fn an_old_file_is_forgotten_and_not_read_again() {
        let mut known = Known::new(100);
        known.add(vec![file("old", 10), file("new", 200)], NOW);
        assert_eq!(known.remembered(), 2);
        known.drop_before(2);
        assert_eq!(known.remembered(), 1);
        let listed = vec![file("old", 10), file("late", 99), file("newer", 150)];
        assert_eq!(names(&known.new_of(listed)), ["newer"]);
    }

    #[test]
    fn the_first_listing_is_read_whole_and_the_future_makes_nothing_old() {
        let mut known = Known::new(100);
        let new = known.new_of(vec![file("a", 1), file("b", NOW + 10_000)]);
        assert_eq!(names(&new), ["a", "b"]);
        known.add(new, NOW);
        assert_eq!(names(&known.new_of(vec![file("c", NOW - 50)])), ["c"]);
    }

    #[test]
    fn a_restart_knows_what_was_known() {
        let mut known = Known::new(100);
        known.add(
            (0..10).map(|n| file(&format!("f{n}"), 500 + n)).collect(),
            NOW,
        );
        known.drop_before(4);
        let summary = known.summary();
        let entries = known.range(4, 10).unwrap();
        let entries: Vec<Bytes> = entries
            .iter()
            .map(|file| serde_json::to_vec(file).unwrap().into())
            .collect();
        let restored = Known::restore(100, Some(&summary), 4, &entries, NOW).unwrap();
        assert_eq!((restored.first, restored.end()), (4, 10));
        assert_eq!(restored.seen, known.seen);
        assert_eq!(restored.forgotten, known.forgotten);
        let cut = summary.slice(..summary.len() - 1);
        assert!(Known::restore(100, Some(&cut), 4, &entries, NOW).is_err());
    }
}
