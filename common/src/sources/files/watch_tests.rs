//! A watched folder against a journal in memory: what is found, noted, kept and forgotten.

use super::super::declared::table;
use super::*;
use crate::connector::TableSpec;
use crate::journal::Journaled;
use crate::options::Options;
use crate::secret::Secret;
use crate::sinks::files::Format;
use arrow::datatypes::{DataType, Field, Schema};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A journal that outlives a start, and may fail.
#[derive(Debug, Default, Clone)]
struct Memory(Arc<Kept>);

#[derive(Debug, Default)]
struct Kept {
    content: Mutex<Journaled>,
    fails: AtomicBool,
}

#[async_trait]
impl Journal for Kept {
    async fn append(&self, entries: &[Bytes]) -> Result<i64> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(Error::unavailable("the state dir is out of reach"));
        }
        let mut content = self.content.lock();
        content.entries.extend(entries.iter().cloned());
        Ok(content.end())
    }

    async fn compact(&self, below: i64, summary: Bytes) -> Result<()> {
        let mut content = self.content.lock();
        let count = usize::try_from(below - content.first).unwrap();
        content.entries.drain(..count);
        content.first = below;
        content.summary = Some(summary);
        Ok(())
    }
}

#[async_trait]
impl Journals for Memory {
    async fn open(&self) -> Result<(Arc<dyn Journal>, Journaled)> {
        Ok((
            Arc::clone(&self.0) as Arc<dyn Journal>,
            self.0.content.lock().clone(),
        ))
    }
}

/// A folder that goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("essaim-watch-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn stream(folder: &Path, options: &[(&str, &str)]) -> Result<Arc<dyn StreamSource>> {
    let mut options: HashMap<String, String> = options
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let interval = ("monitor_interval".to_owned(), "1 millisecond".to_owned());
    options.extend([interval]);
    let columns = Schema::new(vec![Field::new("id", DataType::Int64, true)]);
    let spec = TableSpec {
        name: "files".to_owned(),
        schema: Some(Arc::new(columns)),
        location: Secret::new(folder.display().to_string()),
        options: Options::new("files", &options)?,
        primary_key: Vec::new(),
        unbounded: true,
    };
    let table = table(Format::Json, spec, None).await?;
    Ok(table.source.and_then(|source| source.stream()).unwrap())
}

fn put(folder: &Path, names: impl IntoIterator<Item = usize>) {
    for name in names {
        std::fs::write(folder.join(format!("{name:04}.json")), "{}").unwrap();
    }
}

/// Asks until so many files are known: a look goes on in the background.
async fn until(stream: &dyn StreamSource, from: i64, end: i64) {
    let looks = async {
        while stream.available(&at(from)).await.unwrap().latest != at(end) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looks)
        .await
        .unwrap();
}

fn read(stream: &dyn StreamSource, from: i64, to: i64) -> Vec<String> {
    let splits = stream.splits(&at(from), &at(to), 4).unwrap();
    let name = |split: Split| split.label.rsplit('/').next().unwrap().to_owned();
    splits.into_iter().map(name).collect()
}

#[tokio::test]
async fn what_is_found_is_noted_first_and_known_after_a_restart() {
    let folder = Folder::new();
    let memory = Memory::default();
    put(&folder.0, 0..3);
    let first = stream(&folder.0, &[]).await.unwrap();
    // Only planned: nothing is found.
    assert_eq!(first.available(&at(0)).await.unwrap().latest, at(0));
    first.open(&memory).await.unwrap();
    until(first.as_ref(), 0, 3).await;
    assert_eq!(memory.0.content.lock().entries.len(), 3);
    let names = read(first.as_ref(), 0, 3);

    let second = stream(&folder.0, &[]).await.unwrap();
    second.open(&memory).await.unwrap();
    // What was planned is read again before anybody looks.
    assert_eq!(read(second.as_ref(), 0, 3), names);
    put(&folder.0, 3..4);
    until(second.as_ref(), 3, 4).await;
    assert_eq!(read(second.as_ref(), 3, 4), ["0003.json"]);
}

#[tokio::test]
async fn nothing_is_offered_that_could_not_be_noted() {
    let folder = Folder::new();
    let memory = Memory::default();
    let stream = stream(&folder.0, &[]).await.unwrap();
    stream.open(&memory).await.unwrap();
    put(&folder.0, 0..2);
    memory.0.fails.store(true, Ordering::Relaxed);
    assert!(stream.available(&at(0)).await.is_err());
    put(&folder.0, 2..3);
    memory.0.fails.store(false, Ordering::Relaxed);
    until(stream.as_ref(), 0, 3).await;
    // In the order in which they were to be noted at first.
    assert_eq!(
        read(stream.as_ref(), 0, 3),
        ["0000.json", "0001.json", "0002.json"]
    );
}

#[tokio::test]
async fn committed_files_are_cleaned_up_and_forgotten_but_not_read_again() {
    let folder = Folder::new();
    let memory = Memory::default();
    put(&folder.0, 0..150);
    let first = stream(&folder.0, &[]).await.unwrap();
    first.open(&memory).await.unwrap();
    until(first.as_ref(), 0, 150).await;
    first.committed(&at(50)).await.unwrap();
    assert_eq!(memory.0.content.lock().first, 0, "not yet worth the while");
    assert!(first.splits(&at(49), &at(51), 1).is_err());
    first.committed(&at(120)).await.unwrap();
    assert_eq!(memory.0.content.lock().first, 120);

    let options = [("clean_source", "delete")];
    let second = stream(&folder.0, &options).await.unwrap();
    second.open(&memory).await.unwrap();
    put(&folder.0, 150..151);
    until(second.as_ref(), 150, 151).await;
    assert_eq!(read(second.as_ref(), 150, 151), ["0150.json"]);
    // One that has changed since it was found is not the one that was read.
    std::fs::write(folder.0.join("0130.json"), "{\"id\": 1}").unwrap();
    let error = second.committed(&at(151)).await.unwrap_err().to_string();
    assert!(error.contains("1 of 31 files"), "{error}");
    let left = std::fs::read_dir(&folder.0).unwrap().count();
    assert_eq!(left, 121);
}

#[tokio::test]
async fn a_state_dir_that_has_lost_the_journal_is_noticed() {
    let folder = Folder::new();
    let stream = stream(&folder.0, &[]).await.unwrap();
    stream.open(&Memory::default()).await.unwrap();
    let error = stream.available(&at(7)).await.unwrap_err().to_string();
    assert!(error.contains("part of the state dir is gone"), "{error}");
}
