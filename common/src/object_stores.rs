//! Where files live: the local file system and S3 buckets, the same on master and worker for any URL in a plan.

use crate::access::access;
use crate::confined::Confined;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::redact;
use datafusion::error::DataFusionError;
use datafusion::execution::object_store::ObjectStoreRegistry;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use url::Url;

static STORES: LazyLock<Arc<Stores>> = LazyLock::new(|| Arc::new(Stores::default()));

/// The process's stores: one for local files, one for each bucket, made at its first use. A bucket's endpoint,
/// region and credentials come from the standard `AWS_*` variables of the process.
#[derive(Debug, Default)]
pub struct Stores {
    local: Arc<LocalFileSystem>,
    /// By scheme and bucket, e.g. `s3://toots`.
    others: parking_lot::Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

/// The stores of this process as jobs may use them, for DataFusion's `RuntimeEnv`.
pub fn registry() -> Arc<Stores> {
    Arc::clone(&STORES)
}

/// The store of a job's location and the path in it: `s3://bucket/path`, `file:///path` or a plain path.
///
/// # Errors
/// A scheme that is none of these, a place that jobs may not use, or an `AWS_*` variable that is wrong.
pub fn open(location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let (url, path) = place(location)?;
    access().check_stored(&key(&url), &path)?;
    Ok((STORES.for_jobs(&url)?, path))
}

/// The store of a job's base, `s3://bucket` or `file://`, which looks at each path that it is asked for.
///
/// # Errors
/// As [`open`].
pub fn store(base: &str) -> Result<Arc<dyn ObjectStore>> {
    STORES.for_jobs(&parse(&format!("{base}/"))?)
}

/// The store of a location of this process itself, wherever it is, and the path in it.
///
/// # Errors
/// As [`open`].
pub fn open_own(location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let (url, path) = place(location)?;
    Ok((STORES.store(&url)?, path))
}

/// Checks that jobs may use a location; of a pattern, what comes before its first wildcard.
///
/// # Errors
/// They may not, or it is no location.
pub fn check(location: &str) -> Result<()> {
    if !access().confines_files() {
        return Ok(());
    }
    let fixed = match location.find(['*', '?', '[']) {
        Some(wildcard) => match location[..wildcard].rfind('/') {
            Some(slash) => &location[..=slash],
            None => ".",
        },
        None => location,
    };
    let (url, path) = place(fixed)?;
    access().check_stored(&key(&url), &path)
}

fn place(location: &str) -> Result<(Url, Path)> {
    let url = parse(location)?;
    let path = Path::from_url_path(url.path())
        .map_err(|e| Error::invalid(format!("location {}: {e}", redact(location))))?;
    Ok((url, path))
}

/// A location as a URL; a plain path is made absolute. Ends in `/` if the location does.
///
/// # Errors
/// No URL and no path.
pub fn parse(location: &str) -> Result<Url> {
    let wrong = |why: &dyn Display| {
        Error::invalid(format!(
            "location {}: {why}: write s3://bucket/path, file:///path or a plain path",
            redact(location)
        ))
    };
    if location.contains("://") {
        return Url::parse(location).map_err(|e| wrong(&e));
    }
    let path = std::path::absolute(location).map_err(|e| wrong(&e))?;
    let url = if location.ends_with('/') {
        Url::from_directory_path(path)
    } else {
        Url::from_file_path(path)
    };
    // Parsed once more, so that `..` is resolved.
    let url = url.map_err(|()| wrong(&"it is no path"))?;
    Url::parse(url.as_str()).map_err(|e| wrong(&e))
}

/// The folder or file of this machine that a location names; `None` if it lies in a bucket.
///
/// # Errors
/// As [`parse`].
pub fn local_folder(location: &str) -> Result<Option<PathBuf>> {
    let url = parse(location)?;
    Ok((url.scheme() == "file")
        .then(|| url.to_file_path().ok())
        .flatten())
}

/// Looks whether files can be made in a folder that may itself have to be made, without making any. Returns the folder
/// nearest to it that is there.
///
/// # Errors
/// It is no folder, or this process may not write to it.
pub fn writable(folder: &std::path::Path) -> Result<PathBuf> {
    let there = folder.ancestors().find(|above| above.exists());
    let there = there.unwrap_or(std::path::Path::new("/"));
    let wrong = |why: &dyn Display| {
        Error::invalid(format!(
            "{}: files cannot be made in {}: {why}",
            folder.display(),
            there.display()
        ))
    };
    if !there.is_dir() {
        return Err(wrong(&"it is a file"));
    }
    let wanted = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(there, wanted).map_err(|e| wrong(&std::io::Error::from(e)))?;
    Ok(there.to_owned())
}

/// An error of a store, with the place where it happened.
pub fn failed(place: impl Display, error: &object_store::Error) -> Error {
    let status = status(error);
    let kind = match error {
        object_store::Error::NotFound { .. }
        | object_store::Error::InvalidPath { .. }
        | object_store::Error::NotSupported { .. }
        | object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. }
        | object_store::Error::UnknownConfigurationKey { .. } => ErrorKind::Invalid,
        _ if matches!(status, Some(401 | 403 | 404)) => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    let failed = Error::new(kind, format!("{place}: {error}"));
    match status {
        Some(401 | 403) => failed.with_hint(
            "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN of the process, and at what that key may do there",
        ),
        _ => failed,
    }
}

/// The status with which a bucket's server answered, by the library's words: where it lists, it has no error for each.
fn status(error: &object_store::Error) -> Option<u16> {
    let text = error.to_string();
    let (_, behind) = text.split_once("status code: ")?;
    behind.get(..3)?.parse().ok()
}

impl Stores {
    fn for_jobs(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let store = self.store(url)?;
        Ok(match access().confines_files() {
            true => Arc::new(Confined::new(store, &key(url), access())),
            false => store,
        })
    }

    fn store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if url.scheme() == "file" {
            return Ok(Arc::clone(&self.local) as _);
        }
        let key = key(url);
        let mut others = self.others.lock();
        if let Some(store) = others.get(&key) {
            return Ok(Arc::clone(store));
        }
        let (scheme, Some(bucket)) = (url.scheme(), url.host_str()) else {
            return Err(Error::invalid(format!("{key} names no bucket")));
        };
        if !matches!(scheme, "s3" | "s3a") {
            return Err(Error::invalid(format!(
                "no files are reached by {scheme}://: write s3://bucket/path, file:///path or a plain path"
            )));
        }
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .build()
            .map_err(|e| Error::invalid(format!("{key}: {e}: check the AWS_* variables")))?;
        let store: Arc<dyn ObjectStore> = Arc::new(store);
        others.insert(key, Arc::clone(&store));
        Ok(store)
    }
}

fn key(url: &Url) -> String {
    format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default())
}

impl ObjectStoreRegistry for Stores {
    fn register_store(
        &self,
        url: &Url,
        store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        self.others.lock().insert(key(url), store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>, DataFusionError> {
        Ok(self.for_jobs(url)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_and_file_urls_are_the_same_place() {
        let (_, plain) = open("/tmp/a/../b c/x.csv").unwrap();
        let (_, url) = open("file:///tmp/b%20c/x.csv").unwrap();
        assert_eq!(plain, url);
        assert_eq!(plain.as_ref(), "tmp/b c/x.csv");
        assert!(parse("/tmp/x/").unwrap().path().ends_with('/'));
    }

    #[test]
    fn an_unknown_scheme_is_refused_with_what_to_write() {
        let error = open("gs://bucket/x").unwrap_err().to_string();
        assert!(error.contains("write s3://bucket/path"), "{error}");
    }

    #[test]
    fn files_can_be_made_below_folders_only() {
        let there = std::env::temp_dir();
        assert_eq!(writable(&there.join("essaim-none/a/b")).unwrap(), there);
        let file = std::env::current_exe().unwrap();
        let error = writable(&file.join("out")).unwrap_err().to_string();
        assert!(error.ends_with("it is a file"), "{error}");
    }
}
