//! Names of a checkpoint's objects, and which of them count.

use crate::stream::checkpoint::frame::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An object of an epoch: its kind, its epoch and the generation that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) kind: Kind,
    pub(super) epoch: u64,
    pub(super) generation: u64,
}

/// Where all of a job's checkpoint is.
pub(super) fn root(job: &str) -> String {
    format!("checkpoint/{job}")
}

pub(super) fn fingerprint(job: &str) -> String {
    format!("{}/fingerprint", root(job))
}

pub(super) fn generations(job: &str) -> String {
    format!("{}/generations", root(job))
}

pub(super) fn generation(job: &str, generation: u64) -> String {
    format!("{}/{generation:020}", generations(job))
}

/// Where the journal of a table is. Any table name makes one part of a name, and each its own.
pub(super) fn journal(job: &str, table: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let table = match table.bytes().all(plain) {
        true => format!("table-{table}"),
        false => table
            .bytes()
            .fold("hex-".to_owned(), |name, byte| format!("{name}{byte:02x}")),
    };
    format!("{}/sources/{table}", root(job))
}

/// The generation that a name below [`generations`] is of.
pub(super) fn parse_generation(job: &str, name: &str) -> Option<u64> {
    let rest = name.strip_prefix(&generations(job))?.strip_prefix('/')?;
    number(rest)
}

impl Name {
    /// The object's name in the state dir. Names sort by epoch.
    pub(super) fn of(self, job: &str) -> String {
        let folder = match self.kind {
            Kind::Plan => "plans",
            Kind::Commit => "commits",
            _ => "snapshots",
        };
        let (epoch, generation) = (self.epoch, self.generation);
        format!("{}/{folder}/{epoch:020}.{generation:020}", root(job))
    }

    /// The object that a name is of; `None` for other files.
    pub(super) fn parse(job: &str, name: &str) -> Option<Self> {
        let rest = name.strip_prefix(&root(job))?.strip_prefix('/')?;
        let (folder, rest) = rest.split_once('/')?;
        let kind = match folder {
            "plans" => Kind::Plan,
            "commits" => Kind::Commit,
            "snapshots" => Kind::Snapshot,
            _ => return None,
        };
        let (epoch, generation) = rest.split_once('.')?;
        Some(Self {
            kind,
            epoch: number(epoch)?,
            generation: number(generation)?,
        })
    }
}

fn number(digits: &str) -> Option<u64> {
    (digits.len() == 20).then_some(())?;
    digits.parse().ok()
}

/// What a generation writes down when it opens a checkpoint: which of the objects that are there count from now on.
/// Whatever an older generation writes later is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generation {
    pub(super) generation: u64,
    /// Tells this opening from another one with the same number.
    pub(super) opening: String,
    /// The last committed epoch; `None` before the first.
    pub(super) resumed_after: Option<u64>,
    /// By generation before this one: its commits and snapshots count up to this epoch; `None`: none of them.
    pub(super) before: BTreeMap<u64, Option<u64>>,
    /// Epochs that were planned and not committed, with the generation whose plan is run again.
    pub(super) adopted: BTreeMap<u64, u64>,
}

impl Generation {
    /// Whether a commit or a snapshot counts.
    pub(super) fn counts(&self, name: Name) -> bool {
        if name.generation == self.generation {
            return true;
        }
        let until = self.before.get(&name.generation).copied().flatten();
        until.is_some_and(|until| name.epoch <= until)
    }

    /// Whether a plan of an epoch that is not committed counts.
    pub(super) fn counts_plan(&self, name: Name) -> bool {
        match self.adopted.get(&name.epoch) {
            Some(generation) => *generation == name.generation,
            None => name.generation == self.generation,
        }
    }
}
