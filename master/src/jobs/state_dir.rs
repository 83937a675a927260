//! The state dir: small objects under names, in a folder of this machine or in a bucket.

use bytes::Bytes;
use essaim_common::metrics::{Counter, Durations};
use essaim_common::{Error, Result, object_stores};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one request may take, beside its bytes.
const DEADLINE: Duration = Duration::from_secs(60);
/// The slowest store that is waited for, bytes a second.
const SLOWEST: usize = 1 << 20;
/// In a bucket, objects above this size are written in parts.
const PART_BYTES: usize = 16 << 20;

/// Where a master keeps what must outlive it. Names are relative, with `/` between their parts.
///
/// Every write is whole or not at all. In a folder it is also on the disk when it returns, and only the user of the
/// process may read it: jobs hold passwords.
#[derive(Debug)]
pub struct StateDir {
    url: String,
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// The folder, if it is one.
    local: Option<PathBuf>,
    /// Requests that did not work.
    pub(crate) errors: Counter,
    /// How long requests took, also those that did not work.
    pub(crate) requests: Durations,
}

/// An object that a listing has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Relative to the state dir.
    pub name: String,
    pub bytes: u64,
}

impl StateDir {
    /// Opens a state dir: a folder, which is made if need be, or the URL of one in a bucket.
    ///
    /// # Errors
    /// The URL is wrong; the folder cannot be made.
    pub async fn open(url: &str) -> Result<Arc<Self>> {
        let (store, root) = object_stores::open_own(url)?;
        let parsed = object_stores::parse(url)?;
        let local = match parsed.scheme() {
            "file" => Some(parsed.to_file_path().map_err(|()| {
                Error::invalid(format!("state dir {parsed} is no path of this machine"))
            })?),
            _ => None,
        };
        let dir = Arc::new(Self {
            url: url.to_owned(),
            store,
            root,
            local,
            errors: Counter::default(),
            requests: Durations::default(),
        });
        if let Some(folder) = dir.local.clone() {
            let made = move || -> io::Result<()> {
                if !folder.is_dir() {
                    DirBuilder::new()
                        .recursive(true)
                        .mode(0o700)
                        .create(&folder)?;
                }
                Ok(())
            };
            dir.blocking(DEADLINE, made).await?;
        }
        Ok(dir)
    }

    /// Its URL or path, as it was given: it may hold a password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// An error that names the state dir.
    pub fn trouble(&self, error: impl Display) -> Error {
        self.errors.inc();
        Error::unavailable(format!("state dir {}: {error}", self.url))
    }

    /// A name as people find it: with the state dir in front.
    pub fn show(&self, name: &str) -> String {
        format!("{}/{name}", self.url.trim_end_matches('/'))
    }

    fn path(&self, name: &str) -> Path {
        name.split('/')
            .fold(self.root.clone(), |path, part| path.join(part))
    }

    /// The bytes of an object; `None` if there is none.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.path(name);
        let got = self
            .within(DEADLINE, name, async {
                match self.store.get(&path).await {
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    got => Ok(Some(got?)),
                }
            })
            .await?;
        let Some(got) = got else { return Ok(None) };
        let deadline = deadline(got.meta.size as usize);
        self.within(deadline, name, got.bytes()).await.map(Some)
    }

    /// Whether there is an object.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn exists(&self, name: &str) -> Result<bool> {
        let path = self.path(name);
        self.within(DEADLINE, name, async {
            match self.store.head(&path).await {
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                head => head.map(|_| true),
            }
        })
        .await
    }

    /// Writes an object, or replaces it.
    ///
    /// # Errors
    /// The state dir is out of reach or full: the object is then the old one or the new one.
    pub async fn put(&self, name: &str, content: Vec<Bytes>) -> Result<()> {
        let bytes: usize = content.iter().map(Bytes::len).sum();
        if self.local.is_some() {
            self.put_local(name, content, false).await?;
            return Ok(());
        }
        let path = self.path(name);
        self.within(deadline(bytes), name, async {
            if bytes <= PART_BYTES {
                self.store
                    .put(&path, PutPayload::from_iter(content))
                    .await?;
                return Ok(());
            }
            let mut upload = self.store.put_multipart(&path).await?;
            let written = async {
                for part in parts(content) {
                    upload.put_part(part).await?;
                }
                upload.complete().await
            }
            .await;
            if let Err(error) = written {
                // The store forgets an upload that stays open by its own rules.
                let _ = upload.abort().await;
                return Err(error);
            }
            Ok(())
        })
        .await
    }

    /// Writes an object unless it is there. Returns whether it was written. One whose outcome was not known may be
    /// there afterwards: compare what it holds.
    ///
    /// # Errors
    /// The state dir is out of reach or full.
    pub async fn create(&self, name: &str, content: Vec<Bytes>) -> Result<bool> {
        if self.local.is_some() {
            return self.put_local(name, content, true).await;
        }
        let path = self.path(name);
        self.within(DEADLINE, name, async {
            let payload = PutPayload::from_iter(content);
            match self
                .store
                .put_opts(&path, payload, PutMode::Create.into())
                .await
            {
                Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                put => put.map(|_| true),
            }
        })
        .await
    }

    /// All objects whose names begin with `prefix/`, by name.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Found>> {
        let path = self.path(prefix);
        let listed: Vec<_> = self
            .within(DEADLINE, prefix, self.store.list(Some(&path)).try_collect())
            .await?;
        let mut found: Vec<Found> = listed
            .into_iter()
            .filter_map(|object| {
                let below: Vec<String> = object
                    .location
                    .prefix_match(&path)?
                    .map(|part| part.as_ref().to_owned())
                    .collect();
                Some(Found {
                    name: format!("{prefix}/{}", below.join("/")),
                    bytes: object.size,
                })
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes an object; it is no error if there is none.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        self.within(DEADLINE, name, async {
            match self.store.delete(&path).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                removed => removed,
            }
        })
        .await
    }

    /// Removes what a killed process has left half-written below a prefix. A bucket never shows such objects.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn remove_half_written(&self, prefix: &str) -> Result<()> {
        let Some(folder) = self.file(prefix) else {
            return Ok(());
        };
        self.blocking(DEADLINE, move || remove_half_written(&folder))
            .await
    }

    /// Removes the folders that are left when all objects below a prefix have been removed.
    ///
    /// # Errors
    /// The state dir is out of reach.
    pub async fn remove_folder(&self, prefix: &str) -> Result<()> {
        let Some(folder) = self.file(prefix) else {
            return Ok(());
        };
        let removed = move || match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        self.blocking(DEADLINE, removed).await
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.local.as_ref()?.join(name))
    }

    async fn put_local(&self, name: &str, content: Vec<Bytes>, create: bool) -> Result<bool> {
        let (Some(root), Some(file)) = (self.local.clone(), self.file(name)) else {
            return Err(Error::internal(format!("{} is no file", self.show(name))));
        };
        let bytes = content.iter().map(Bytes::len).sum();
        self.blocking(deadline(bytes), move || {
            write_file(&root, &file, &content, create)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))
        })
        .await
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        name: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let done = tokio::time::timeout(deadline, work).await;
        self.requests.observe(started.elapsed());
        match done {
            Ok(done) => done.map_err(|e| self.trouble(format_args!("{name}: {e}"))),
            Err(_) => Err(self.late(deadline)),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let started = Instant::now();
        let done = tokio::time::timeout(deadline, tokio::task::spawn_blocking(work)).await;
        self.requests.observe(started.elapsed());
        match done {
            Ok(Ok(done)) => done.map_err(|e| self.trouble(e)),
            Ok(Err(error)) => Err(self.trouble(error)),
            Err(_) => Err(self.late(deadline)),
        }
    }

    fn late(&self, deadline: Duration) -> Error {
        self.trouble(format_args!("no answer within {} s", deadline.as_secs()))
    }
}

fn deadline(bytes: usize) -> Duration {
    DEADLINE + Duration::from_secs((bytes / SLOWEST) as u64)
}

/// Chunks put together to parts that a bucket takes.
fn parts(content: Vec<Bytes>) -> Vec<PutPayload> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut size = 0;
    for mut chunk in content {
        while size + chunk.len() >= PART_BYTES {
            part.push(chunk.split_to(PART_BYTES - size));
            parts.push(PutPayload::from_iter(std::mem::take(&mut part)));
            size = 0;
        }
        size += chunk.len();
        part.push(chunk);
    }
    if size > 0 {
        parts.push(PutPayload::from_iter(part));
    }
    parts
}

/// Writes a file beside its place, brings it to the disk and moves it there. Returns whether it was written.
fn write_file(
    root: &FilePath,
    file: &FilePath,
    content: &[Bytes],
    create: bool,
) -> io::Result<bool> {
    let folder = file.parent().unwrap_or(root);
    // Listings pass over names that end in `#` and digits.
    let unique = uuid::Uuid::new_v4().as_u64_pair().0;
    let mut half = file.as_os_str().to_owned();
    half.push(format!("#{unique}"));
    let half = PathBuf::from(half);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let opened = match options.open(&half) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make_folders(root, folder)?;
            options.open(&half)
        }
        opened => opened,
    };
    let mut out = opened?;
    let written = (|| {
        for chunk in content {
            out.write_all(chunk)?;
        }
        out.sync_all()?;
        if !create {
            fs::rename(&half, file)?;
            return Ok(true);
        }
        match fs::hard_link(&half, file) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            linked => linked.map(|()| true),
        }
    })();
    if create || written.is_err() {
        // What cannot be removed now is removed at the next start.
        let _ = fs::remove_file(&half);
    }
    if matches!(written, Ok(true)) {
        File::open(folder)?.sync_all()?;
    }
    written
}

/// Makes the folders between the state dir and a file. The state dir itself must be there: where it is a mount that
/// has gone, nothing must be written below.
fn make_folders(root: &FilePath, folder: &FilePath) -> io::Result<()> {
    let below = folder.strip_prefix(root).map_err(io::Error::other)?;
    let mut path = root.to_owned();
    for part in below.components() {
        let parent = path.clone();
        let Component::Normal(part) = part else {
            return Err(io::Error::other("a name leads out of the state dir"));
        };
        path.push(part);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => {
                made?;
                File::open(parent)?.sync_all()?;
            }
        }
    }
    Ok(())
}

fn remove_half_written(folder: &FilePath) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_half_written(&entry.path())?;
        } else if is_half_written(&entry.file_name().to_string_lossy()) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn is_half_written(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, digits)| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}
