//! One local file that grows by each epoch: a file beside it says how long it is, by right.

use super::writer::encode_text;
use super::{Format, Layout, superseded};
use crate::access::access;
use crate::connector::SinkRun;
use crate::error::{Error, ErrorKind, Result};
use crate::object_stores;
use crate::stream::StreamSink;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long another process of this machine may hold the file.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What the file beside says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sidecar {
    job: String,
    query: u32,
    generation: u64,
    /// The last epoch committed.
    epoch: Option<u64>,
    /// Its rows.
    rows: u64,
    /// Up to here the file is committed, in bytes.
    length: u64,
}

/// Appends epochs to one file of text.
#[derive(Debug)]
pub(super) struct GrowingFile {
    place: Arc<Place>,
    layout: Layout,
    schema: SchemaRef,
}

/// The file, and those beside it.
#[derive(Debug)]
struct Place {
    file: PathBuf,
    sidecar: PathBuf,
    lock: PathBuf,
    run: SinkRun,
}

/// The file in the hands of this process. It travels into every blocking call, so that the lock outlives a call whose
/// future has been dropped.
#[derive(Debug)]
struct Held {
    place: Arc<Place>,
    /// Unlocked when it is closed.
    _lock: File,
    file: File,
}

impl GrowingFile {
    /// # Errors
    /// A location or a layout that cannot grow.
    pub(super) fn new(
        location: &str,
        layout: &Layout,
        schema: &SchemaRef,
        run: &SinkRun,
    ) -> Result<Self> {
        let why = if layout.format == Format::Parquet {
            Some("a Parquet file cannot grow")
        } else if layout
            .compression
            .as_deref()
            .is_some_and(|codec| codec != "uncompressed")
        {
            Some("a compressed file cannot grow")
        } else if object_stores::parse(location)?.scheme() != "file" {
            Some("only a local file can grow")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(Error::invalid(format!(
                "{location} is to take the rows of all epochs, but {why}: name a folder as LOCATION ('…/', or single_file 'false')"
            )));
        }
        let (_, path) = object_stores::open(location)?;
        let file = PathBuf::from(format!("/{path}"));
        let name = path.filename().unwrap_or_default();
        Ok(Self {
            place: Arc::new(Place {
                sidecar: file.with_file_name(format!(".{name}.essaim.json")),
                lock: file.with_file_name(format!(".{name}.essaim.lock")),
                file,
                run: run.clone(),
            }),
            layout: layout.clone(),
            schema: Arc::clone(schema),
        })
    }

    /// Waits for the lock.
    async fn hold(&self) -> Result<Held> {
        let deadline = tokio::time::Instant::now() + LOCK_DEADLINE;
        loop {
            let place = Arc::clone(&self.place);
            if let Some(held) = blocking(move || place.try_hold()).await? {
                return Ok(held);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::unavailable(format!(
                    "{}: another process holds its lock, {}",
                    self.place.file.display(),
                    self.place.lock.display()
                )));
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    /// Writes rows behind what is committed. Returns how many.
    async fn append(
        &self,
        mut held: Held,
        sidecar: &Sidecar,
        mut rows: SendableRecordBatchStream,
    ) -> Result<(Held, u64)> {
        let length = sidecar.length;
        held = blocking(move || held.cut(length)).await?;
        let mut count = 0;
        let mut header = length == 0 && self.layout.has_header;
        let empty = RecordBatch::new_empty(Arc::clone(&self.schema));
        // The first batch only brings the header, if there is one to bring.
        let mut next = (header && self.layout.format == Format::Csv).then_some(Ok(empty));
        loop {
            let batch = match next.take() {
                Some(batch) => batch,
                None => match rows.next().await {
                    Some(batch) => batch,
                    None => break,
                },
            };
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    // What readers see is whole again at once.
                    let _ = blocking(move || held.cut(length)).await;
                    return Err(error.into());
                }
            };
            count += batch.num_rows() as u64;
            let layout = self.layout.clone();
            held = blocking(move || held.write(&batch, &layout, header, length)).await?;
            header = false;
        }
        Ok((held, count))
    }
}

#[async_trait]
impl StreamSink for GrowingFile {
    async fn begin(&self) -> Result<Option<u64>> {
        let held = self.hold().await?;
        blocking(move || held.begin()).await
    }

    async fn commit(&self, epoch: u64, rows: SendableRecordBatchStream) -> Result<u64> {
        let held = self.hold().await?;
        let (held, sidecar) = blocking(move || held.own_sidecar()).await?;
        if let Some(last) = sidecar.epoch
            && epoch <= last
        {
            return Ok(if epoch == last { sidecar.rows } else { 0 });
        }
        let (held, rows) = self.append(held, &sidecar, rows).await?;
        blocking(move || held.seal(epoch, rows)).await?;
        Ok(rows)
    }

    fn describe(&self) -> String {
        format!(
            "{} exactly once, one growing file: {}",
            self.layout.format.name(),
            self.place.file.display()
        )
    }
}

impl Place {
    /// The lock, and the file behind it; `None` if another process has them.
    fn try_hold(self: Arc<Self>) -> Result<Option<Held>> {
        for path in [&self.file, &self.sidecar, &self.lock] {
            access().check_file("the file", path)?;
        }
        if let Some(folder) = self.file.parent() {
            std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let lock = options
            .open(&self.lock)
            .map_err(|e| failed(&self.lock, &e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(failed(&self.lock, &error)),
        }
        // A file that is there, but that nobody vouches for, is somebody else's.
        let sidecar = self.read_sidecar()?;
        let length = match std::fs::metadata(&self.file) {
            Ok(found) => Some(found.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&self.file, &error)),
        };
        let file = self.file.display();
        match &sidecar {
            None if length.is_some_and(|length| length > 0) => {
                return Err(Error::invalid(format!(
                    "file {file} exists, and no streaming job has written it: name another one, or remove it"
                )));
            }
            Some(found) if found.job != self.run.job || found.query != self.run.query => {
                return Err(Error::invalid(format!(
                    "file {file} is written by INSERT {} of job {}: name another one, or remove it together with {}",
                    found.query,
                    found.job,
                    self.sidecar.display()
                )));
            }
            Some(found) if length.unwrap_or(0) < found.length => {
                return Err(Error::data(format!(
                    "file {file} has {} bytes, but {} were committed up to epoch {}: somebody has changed it; put it back, or remove it together with {} and let the job begin anew under another name",
                    length.unwrap_or(0),
                    found.length,
                    found.epoch.unwrap_or(0),
                    self.sidecar.display()
                )));
            }
            _ => {}
        }
        let file = options
            .open(&self.file)
            .map_err(|e| failed(&self.file, &e))?;
        Ok(Some(Held {
            place: self,
            _lock: lock,
            file,
        }))
    }

    fn read_sidecar(&self) -> Result<Option<Sidecar>> {
        let text = match std::fs::read(&self.sidecar) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&self.sidecar, &error)),
        };
        let path = self.sidecar.display();
        let sidecar: Sidecar = serde_json::from_slice(&text)
            .map_err(|e| Error::internal(format!("{path} is of another version: {e}")))?;
        if sidecar.job == self.run.job
            && sidecar.query == self.run.query
            && sidecar.generation > self.run.generation
        {
            return Err(superseded(
                self.file.display(),
                &self.run,
                sidecar.generation,
            ));
        }
        Ok(Some(sidecar))
    }

    fn write_sidecar(&self, sidecar: &Sidecar) -> Result<()> {
        let text = serde_json::to_vec(sidecar).map_err(|e| Error::internal(e.to_string()))?;
        let mut new = self.sidecar.clone();
        new.as_mut_os_string().push(".new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &self.sidecar)?;
            match self.sidecar.parent() {
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(|e| failed(&self.sidecar, &e))
    }
}

impl Held {
    /// Takes the file over from lower generations, and cuts off what they did not commit.
    fn begin(self) -> Result<Option<u64>> {
        let run = &self.place.run;
        let found = self.place.read_sidecar()?.unwrap_or_else(|| Sidecar {
            job: run.job.clone(),
            query: run.query,
            generation: run.generation,
            epoch: None,
            rows: 0,
            length: 0,
        });
        let sidecar = Sidecar {
            generation: run.generation,
            ..found
        };
        self.place.write_sidecar(&sidecar)?;
        self.cut(sidecar.length)?;
        Ok(sidecar.epoch)
    }

    /// What this generation began with or committed last.
    fn own_sidecar(self) -> Result<(Self, Sidecar)> {
        match self.place.read_sidecar()? {
            Some(sidecar) if sidecar.generation == self.place.run.generation => Ok((self, sidecar)),
            _ => Err(Error::internal(format!(
                "{}: an epoch is committed before the sink has begun",
                self.place.file.display()
            ))),
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        failed(&self.place.file, error)
    }

    fn cut(mut self, length: u64) -> Result<Self> {
        self.file
            .set_len(length)
            .and_then(|()| self.file.seek(SeekFrom::Start(length)))
            .map_err(|e| self.failed(&e))?;
        Ok(self)
    }

    /// After an error the file has `length` bytes, as far as that is possible.
    fn write(
        mut self,
        batch: &RecordBatch,
        layout: &Layout,
        header: bool,
        length: u64,
    ) -> Result<Self> {
        let written = encode_text(batch, layout, header)
            .map_err(|e| Error::data(format!("writing {}: {e}", self.place.file.display())))
            .and_then(|text| self.file.write_all(&text).map_err(|e| self.failed(&e)));
        match written {
            Ok(()) => Ok(self),
            Err(error) => {
                let _ = self.cut(length);
                Err(error)
            }
        }
    }

    /// The moment of the commit: the rows are on the disk, then the file beside says so.
    fn seal(mut self, epoch: u64, rows: u64) -> Result<()> {
        self.file.sync_all().map_err(|e| self.failed(&e))?;
        let length = self.file.stream_position().map_err(|e| self.failed(&e))?;
        let (held, sidecar) = self.own_sidecar()?;
        held.place.write_sidecar(&Sidecar {
            epoch: Some(epoch),
            rows,
            length,
            ..sidecar
        })
    }
}

/// Runs file calls where they may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal(e.to_string()))?
}

/// An error of the file system, with the path.
fn failed(path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("{}: {error}", path.display()))
}
