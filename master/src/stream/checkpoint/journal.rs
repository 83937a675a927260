//! The journals of a job's sources in its checkpoint: what came from a source that cannot be read again.
//!
//! ```text
//! checkpoint/<job>/sources/<table>/entries/<first>.<generation>     entries from number <first> on
//!                                  summaries/<below>.<generation>   what stands in for the entries before <below>
//!                                  openings/<generation>            what counts of older generations
//! ```
//! Older generations are shut out as they are of the rest of the checkpoint: what a master that was asleep adds under its
//! old generation is not in the last opening, and counts for nobody.

use crate::jobs::state_dir::StateDir;
use crate::stream::checkpoint::frame::{Kind, Parts, decode, encode};
use crate::stream::checkpoint::{Objects, names};
use async_trait::async_trait;
use bytes::Bytes;
use essaim_common::journal::{Journal, Journaled, Journals, check_entry};
use essaim_common::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Mutex;

/// Objects that are read or removed at a time.
const REQUESTS: usize = 8;

/// Opens the journal of one table.
#[derive(Debug)]
pub struct TableJournals {
    place: Place,
    opened: AtomicBool,
}

/// The journal of one table for one generation.
#[derive(Debug)]
struct TableJournal {
    place: Place,
    content: Mutex<Content>,
}

/// Where a journal is, and whose it is.
#[derive(Debug, Clone)]
struct Place {
    objects: Objects,
    /// The names of all of the journal's objects begin with it.
    root: String,
    generation: u64,
}

/// What is in a journal.
#[derive(Debug, Default)]
struct Content {
    /// The number of the next entry.
    end: i64,
    /// Objects with entries, with the number behind their last one.
    entries: BTreeMap<Numbered, i64>,
    summaries: Vec<Numbered>,
}

/// An object by the number and the generation in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Numbered {
    number: i64,
    generation: u64,
}

/// What a generation writes down when it opens a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Opening {
    generation: u64,
    /// By generation before this one: its entries count as far as this number, exclusive.
    before: BTreeMap<u64, i64>,
}

/// What an object with entries or a summary says of itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    number: i64,
    generation: u64,
}

impl TableJournals {
    /// The journals of `table` of a job, for a generation that has opened the job's checkpoint.
    pub fn new(dir: &Arc<StateDir>, job: &str, table: &str, generation: u64) -> Self {
        Self {
            place: Place {
                objects: Objects {
                    dir: Arc::clone(dir),
                    job: Arc::from(job),
                },
                root: names::journal(job, table),
                generation,
            },
            opened: AtomicBool::new(false),
        }
    }

    /// Whether the source keeps a journal.
    pub fn opened(&self) -> bool {
        self.opened.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Journals for TableJournals {
    async fn open(&self) -> Result<(Arc<dyn Journal>, Journaled)> {
        self.opened.store(true, Ordering::Relaxed);
        let place = self.place.clone();
        let generation = place.generation;
        let found = place.objects.dir.list(&place.root).await?;
        let names = || found.iter().filter_map(|found| place.relative(&found.name));
        let newest = names().filter_map(|name| name.strip_prefix("openings/")?.parse::<u64>().ok());
        let last = match newest.max() {
            Some(newest) => {
                let (opening, _) = place
                    .read::<Opening>(&format!("openings/{newest:020}"))
                    .await?;
                opening
            }
            None => Opening::default(),
        };
        if last.generation >= place.generation {
            return Err(place.objects.superseded(place.generation));
        }
        let in_folder = |folder: &str| -> Vec<Numbered> {
            names()
                .filter_map(|name| Numbered::parse(name.strip_prefix(folder)?.strip_prefix('/')?))
                .collect()
        };
        let (summaries, surplus_summaries): (Vec<_>, Vec<_>) = in_folder("summaries")
            .into_iter()
            .partition(|summary| last.counts_summary(*summary));
        let (entries, surplus_entries): (Vec<_>, Vec<_>) = in_folder("entries")
            .into_iter()
            .partition(|entries| last.counts(*entries));
        let mut journaled = Journaled::default();
        if let Some(summary) = summaries.iter().max() {
            let (_, mut parts) = place.stored("summaries", *summary).await?;
            journaled.summary = parts.pop().map(|(_, bytes)| bytes);
            journaled.first = summary.number;
        }
        let (mut content, entries) = place.read_entries(entries, journaled.first).await?;
        content.summaries = summaries;
        journaled.entries = entries;
        place.open(&last, &content).await?;
        let openings = names()
            .filter(|name| name.starts_with("openings/"))
            .filter(|name| *name < place.opening().as_str())
            .map(str::to_owned);
        let in_folder = |surplus: Vec<Numbered>, folder: &'static str| {
            let older = surplus
                .into_iter()
                .filter(|surplus| surplus.generation < generation);
            older.map(move |surplus| surplus.below(folder))
        };
        let surplus =
            in_folder(surplus_summaries, "summaries").chain(in_folder(surplus_entries, "entries"));
        place.remove(openings.chain(surplus).collect()).await?;
        let journal = TableJournal {
            place,
            content: Mutex::new(content),
        };
        Ok((Arc::new(journal), journaled))
    }
}

#[async_trait]
impl Journal for TableJournal {
    async fn append(&self, entries: &[Bytes]) -> Result<i64> {
        entries.iter().try_for_each(check_entry)?;
        let mut content = self.content.lock().await;
        if entries.is_empty() {
            return Ok(content.end);
        }
        let name = self.place.numbered(content.end);
        let parts = entries
            .iter()
            .map(|entry| (String::new(), entry.clone()))
            .collect();
        self.place.write("entries", name, parts).await?;
        content.end += entries.len() as i64;
        let end = content.end;
        content.entries.insert(name, end);
        Ok(end)
    }

    async fn compact(&self, below: i64, summary: Bytes) -> Result<()> {
        let mut content = self.content.lock().await;
        if content.summaries.iter().any(|old| old.number >= below) {
            return Ok(());
        }
        // A generation that opens the job after this look has seen the commit because of which these may go.
        if self.place.objects.newest_generation().await? > Some(self.place.generation) {
            return Err(self.place.objects.superseded(self.place.generation));
        }
        let name = self.place.numbered(below.min(content.end));
        let parts = vec![(String::new(), summary)];
        self.place.write("summaries", name, parts).await?;
        let old_summaries = std::mem::replace(&mut content.summaries, vec![name]);
        let old_entries: Vec<Numbered> = content
            .entries
            .iter()
            .filter(|(_, end)| **end <= name.number)
            .map(|(entries, _)| *entries)
            .collect();
        let summaries = old_summaries.iter().map(|old| old.below("summaries"));
        let entries = old_entries.iter().map(|old| old.below("entries"));
        self.place
            .remove(summaries.chain(entries).collect())
            .await?;
        for gone in old_entries {
            content.entries.remove(&gone);
        }
        Ok(())
    }
}

impl Opening {
    /// Entries of an object count if it begins before the end that was found of its generation.
    fn counts(&self, entries: Numbered) -> bool {
        self.is_before(entries.generation, |end| entries.number < end)
    }

    fn counts_summary(&self, summary: Numbered) -> bool {
        self.is_before(summary.generation, |end| summary.number <= end)
    }

    fn is_before(&self, generation: u64, is_before: impl Fn(i64) -> bool) -> bool {
        generation == self.generation
            || self
                .before
                .get(&generation)
                .is_some_and(|end| is_before(*end))
    }
}

impl Numbered {
    /// `<number>.<generation>`, so that names sort by number.
    fn below(self, folder: &str) -> String {
        format!("{folder}/{:020}.{:020}", self.number, self.generation)
    }

    fn parse(name: &str) -> Option<Self> {
        let (number, generation) = name.split_once('.')?;
        Some(Self {
            number: number.parse().ok()?,
            generation: generation.parse().ok()?,
        })
    }
}

impl Place {
    fn numbered(&self, number: i64) -> Numbered {
        Numbered {
            number,
            generation: self.generation,
        }
    }

    fn opening(&self) -> String {
        format!("openings/{:020}", self.generation)
    }

    /// A name in the state dir.
    fn name(&self, relative: &str) -> String {
        format!("{}/{relative}", self.root)
    }

    fn relative<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(&self.root)?.strip_prefix('/')
    }

    async fn write(&self, folder: &str, name: Numbered, parts: Parts) -> Result<()> {
        let meta = Meta {
            number: name.number,
            generation: name.generation,
        };
        let content = encode(Kind::Journal, &meta, parts)?;
        let name = self.name(&name.below(folder));
        self.objects.dir.put(&name, content).await
    }

    async fn read<M: DeserializeOwned>(&self, relative: &str) -> Result<(M, Parts)> {
        let name = self.name(relative);
        let Some(object) = self.objects.dir.get(&name).await? else {
            return Err(self.objects.broken(&name, Error::data("it has gone")));
        };
        decode(Kind::Journal, object).map_err(|error| self.objects.broken(&name, error))
    }

    async fn stored(&self, folder: &str, name: Numbered) -> Result<(Meta, Parts)> {
        let relative = name.below(folder);
        let (meta, parts) = self.read::<Meta>(&relative).await?;
        let (number, generation) = (name.number, name.generation);
        if meta != (Meta { number, generation }) {
            let renamed = Error::data("it holds other entries than its name says");
            return Err(self.objects.broken(&self.name(&relative), renamed));
        }
        Ok((meta, parts))
    }

    /// The entries of `objects` from number `first` on.
    async fn read_entries(
        &self,
        mut objects: Vec<Numbered>,
        first: i64,
    ) -> Result<(Content, Vec<Bytes>)> {
        objects.sort_unstable();
        let mut read = futures::stream::iter(objects)
            .map(|object| async move {
                let (_, parts) = self.stored("entries", object).await?;
                Ok::<_, Error>((object, parts))
            })
            .buffered(REQUESTS);
        let mut content = Content {
            end: first,
            ..Content::default()
        };
        let mut entries = Vec::new();
        while let Some((object, parts)) = read.try_next().await? {
            let end = object.number + parts.len() as i64;
            content.entries.insert(object, end);
            if end <= first {
                continue;
            }
            if object.number > content.end {
                let missing = Error::data(format!("it follows entry {}", object.number - 1));
                let ends = format!("entry {} is the last before it", content.end - 1);
                return Err(self
                    .objects
                    .broken(&self.name(&object.below("entries")), missing.context(ends)));
            }
            let known = (content.end - object.number) as usize;
            entries.extend(parts.into_iter().skip(known).map(|(_, entry)| entry));
            content.end = content.end.max(end);
        }
        Ok((content, entries))
    }

    /// Makes the new generation the one that counts.
    async fn open(&self, last: &Opening, content: &Content) -> Result<()> {
        let mut before = last.before.clone();
        before.insert(last.generation, content.end);
        let in_use: BTreeSet<u64> = content
            .entries
            .keys()
            .chain(&content.summaries)
            .map(|object| object.generation)
            .collect();
        before
            .retain(|generation, _| in_use.contains(generation) || last.generation == *generation);
        let opening = Opening {
            generation: self.generation,
            before,
        };
        let opening = encode(Kind::Journal, &opening, Parts::new())?;
        self.objects
            .dir
            .put(&self.name(&self.opening()), opening)
            .await
    }

    async fn remove(&self, names: Vec<String>) -> Result<()> {
        futures::stream::iter(names)
            .map(|name| async move { self.objects.dir.remove(&self.name(&name)).await })
            .buffer_unordered(REQUESTS)
            .try_collect()
            .await
    }
}
