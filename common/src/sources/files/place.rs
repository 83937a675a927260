//! Where files are looked for, and which of what is there counts: Spark's rules.

use super::file::{FileVersion, Storage};
use crate::error::{Error, Result};
use crate::object_stores::{self, failed};
use crate::options::Options;
use datafusion::datasource::listing::ListingTableUrl;
use futures::{StreamExt, TryStreamExt};
use object_store::path::{Path, PathPart};
use object_store::{ObjectMeta, ObjectStoreExt};
use std::time::Duration;

/// Files of one place, at most: each is remembered.
pub(super) const MAX_FILES: usize = 1_000_000;
/// The longest that a listing may take.
const LISTING: Duration = Duration::from_secs(300);
/// What makes a text a pattern.
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// A folder, a prefix of a bucket, or a pattern of files.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub storage: Storage,
    /// The folder that all of it is in.
    pub folder: Path,
    pattern: Option<Pattern>,
    /// Folders below it count too.
    recursive: bool,
}

/// A pattern of what follows the folder.
#[derive(Debug, Clone)]
struct Pattern {
    /// Holds the compiled pattern.
    url: ListingTableUrl,
    /// How many names a path that matches has; `None` if it may have any number.
    names: Option<usize>,
}

impl Place {
    /// The place of a LOCATION. Asks nobody.
    ///
    /// # Errors
    /// No location, one that jobs may not use, or no pattern.
    pub fn new(location: &str, recursive: bool, options: &Options) -> Result<Self> {
        let wildcard = location.find(WILDCARDS);
        let (folder, pattern) = match wildcard {
            Some(at) => match location[..at].rfind('/') {
                Some(slash) => location.split_at(slash + 1),
                None => ("./", location),
            },
            None => (location, ""),
        };
        let (store, path) = object_stores::open(folder)?;
        let url = object_stores::parse(folder)?;
        let base = format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default());
        let pattern = if pattern.is_empty() {
            None
        } else {
            let wrong = |e| {
                options.error(format!(
                    "LOCATION: the pattern {pattern}: {}",
                    Error::from(e)
                ))
            };
            let url = ListingTableUrl::parse(url.as_str())
                .and_then(|url| url.with_glob(pattern))
                .map_err(wrong)?;
            let names = pattern.split('/').count();
            Some(Pattern {
                url,
                names: (!recursive && !pattern.contains("**")).then_some(names),
            })
        };
        Ok(Self {
            storage: Storage { store, base },
            folder: path,
            pattern,
            recursive,
        })
    }

    /// The place as people know it.
    pub fn url(&self) -> String {
        self.storage.url(self.folder.as_ref())
    }

    /// The one file that the place is, if it is one.
    ///
    /// # Errors
    /// The store is out of reach.
    pub async fn file(&self) -> Result<Option<FileVersion>> {
        if self.pattern.is_some() || self.folder.parts().next().is_none() {
            return Ok(None);
        }
        match self.storage.store.head(&self.folder).await {
            Ok(meta) => Ok(Some(self.storage.version(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(self.url(), &error)),
        }
    }

    /// All files that count, by name; the one that the place is, if it is one.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn files(&self) -> Result<Vec<FileVersion>> {
        if let Some(file) = self.file().await? {
            return Ok(vec![file]);
        }
        let mut files = self.list().await?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// All files that count, in no order.
    ///
    /// # Errors
    /// The store is out of reach, or does not answer in time; there are too many files.
    pub async fn list(&self) -> Result<Vec<FileVersion>> {
        let Ok(listed) = tokio::time::timeout(LISTING, self.listed()).await else {
            return Err(Error::unavailable(format!(
                "{}: listing the files has taken more than {} s",
                self.url(),
                LISTING.as_secs()
            )));
        };
        listed
    }

    async fn listed(&self) -> Result<Vec<FileVersion>> {
        let store = &self.storage.store;
        let failed = |e| failed(self.url(), &e);
        let is_deep = match &self.pattern {
            Some(pattern) => pattern.names != Some(1),
            None => self.recursive,
        };
        let mut found = Vec::new();
        if is_deep {
            let mut files = store.list(Some(&self.folder)).map_err(failed).boxed();
            while let Some(file) = files.try_next().await? {
                self.take(&file, &mut found)?;
            }
        } else {
            let files = store.list_with_delimiter(Some(&self.folder)).await;
            for file in &files.map_err(failed)?.objects {
                self.take(file, &mut found)?;
            }
        }
        Ok(found)
    }

    fn take(&self, file: &ObjectMeta, found: &mut Vec<FileVersion>) -> Result<()> {
        if !self.contains(&file.location) {
            return Ok(());
        }
        if found.len() == MAX_FILES {
            return Err(Error::exhausted(format!(
                "{}: there are more than {MAX_FILES} files: remove or archive what has been read (clean_source), or spread them over several folders with a table each",
                self.url()
            )));
        }
        found.push(self.storage.version(file));
        Ok(())
    }

    /// Whether a path is one of the place's files: no part of it begins with `_` or `.`, and it lies where it should.
    pub fn contains(&self, path: &Path) -> bool {
        let Some(names) = path.prefix_match(&self.folder) else {
            return false;
        };
        let names: Vec<_> = names.collect();
        let is_hidden = |name: &PathPart<'_>| name.as_ref().starts_with(['_', '.']);
        if names.is_empty() || names.iter().any(is_hidden) {
            return false;
        }
        let Some(pattern) = &self.pattern else {
            return self.recursive || names.len() == 1;
        };
        let below: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        let glob = pattern.url.get_glob().as_ref();
        pattern.names.is_none_or(|count| count == names.len())
            && glob.is_some_and(|glob| glob.matches(&below.join("/")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_in(location: &str, recursive: bool, path: &str) -> bool {
        let place = Place::new(location, recursive, &Options::default()).unwrap();
        place.contains(&Path::from(path))
    }

    #[test]
    fn files_of_the_folder_count_and_hidden_ones_do_not() {
        assert!(is_in("/in", false, "in/a.json"));
        assert!(is_in("/in/", false, "in/a.json"));
        for other in [
            "in/_a.json",
            "in/.a.json",
            "in/b/a.json",
            "input/a.json",
            "in",
        ] {
            assert!(!is_in("/in/", false, other), "{other}");
        }
        assert!(is_in("/in", true, "in/2026/a.json"));
        assert!(!is_in("/in", true, "in/_tmp/a.json"));
    }

    #[test]
    fn a_pattern_tells_which() {
        assert!(is_in("/in/*.json", false, "in/a.json"));
        assert!(!is_in("/in/*.json", false, "in/a.csv"));
        assert!(!is_in("/in/*.json", false, "in/b/a.json"));
        assert!(is_in("/in/2026-*/a?.json", false, "in/2026-11/a1.json"));
        assert!(!is_in("/in/2026-*/a?.json", false, "in/2025-11/a1.json"));
        assert!(is_in("/in/**/*.json", false, "in/b/c/a.json"));
        assert!(is_in("/in/day=*/*.json", false, "in/day=1/a.json"));
        assert!(is_in("/in/*.json", true, "in/b/a.json"));
    }
}
