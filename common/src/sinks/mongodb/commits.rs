//! The collection `essaim_commits`: for each INSERT of a job who may write, the last epoch that is in, and of a batch job
//! what it has decided to write.

use crate::connector::SinkRun;
use crate::error::{Error, Result};
use crate::sources::mongodb::client::{Connected, STATEMENT};
use crate::sources::mongodb::refusal::{DUPLICATE_KEY, driver_error};
use mongodb::Collection;
use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::error::ErrorKind as Driver;
use mongodb::options::ReturnDocument;
use serde::{Deserialize, Serialize};

/// Its name, in the database of the target.
pub const COLLECTION: &str = "essaim_commits";

/// A staging collection, and how many documents were put there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    pub collection: String,
    pub rows: i64,
}

/// What is known of an INSERT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The last epoch that is in.
    pub epoch: Option<u64>,
    /// What a batch job was about to write when it was last heard of.
    pub pending: Option<Vec<Staged>>,
}

/// The document of one INSERT.
#[derive(Debug, Clone)]
pub struct Commits {
    /// The job's id without dashes, and the query.
    id: String,
    job: String,
    query: u32,
    generation: i64,
    /// For people: the target.
    target: String,
}

impl Commits {
    /// That of `run`, whose rows go to `target`.
    pub fn new(target: &str, run: &SinkRun) -> Self {
        let job: String = run.job.chars().filter(char::is_ascii_hexdigit).collect();
        Self {
            id: format!("{job}_{}", run.query),
            job: run.job.clone(),
            query: run.query,
            generation: signed(run.generation),
            target: target.to_owned(),
        }
    }

    /// What the `_id`s of an epoch's documents begin with. As text they are in the order of the epochs.
    pub fn ids(&self, epoch: u64) -> String {
        format!("{}_{epoch:016x}_", self.id)
    }

    /// For people: the document that tells.
    pub fn place(&self) -> String {
        format!("{COLLECTION} with _id '{}'", self.id)
    }

    fn collection(&self, connected: &Connected) -> Collection<Document> {
        connected.collection(COLLECTION)
    }

    /// Notes the generation, which shuts out every older master from here on.
    ///
    /// # Errors
    /// A higher generation has been seen; the server's.
    pub async fn claim(&self, connected: &Connected) -> Result<Known> {
        let mine = doc! { "_id": &self.id, "generation": { "$lte": self.generation } };
        let claim = doc! {
            "$set": { "generation": self.generation },
            "$setOnInsert": {
                "job": &self.job, "query": i64::from(self.query), "target": &self.target, "epoch": -1i64,
            },
        };
        let collection = self.collection(connected);
        let claim = collection
            .find_one_and_update(mine, claim)
            .upsert(true)
            .return_document(ReturnDocument::After);
        match connected.attempt(STATEMENT, claim).await? {
            Ok(Some(document)) => known(&document),
            Ok(None) => Err(Error::unavailable(format!(
                "{COLLECTION} has lost a document"
            ))),
            Err(error) => match error.kind.as_ref() {
                // It is there with a higher generation, or another master has made it in the same moment.
                Driver::Command(refused) if refused.code == DUPLICATE_KEY => {
                    self.check(connected).await?;
                    Err(Error::unavailable(format!(
                        "{} was made by another master in the same moment",
                        self.place()
                    )))
                }
                _ => Err(driver_error(&error, &connected.place)),
            },
        }
    }

    /// What is known, as long as this generation may write.
    ///
    /// # Errors
    /// A higher generation has been seen; nothing was claimed; the server's.
    pub async fn check(&self, connected: &Connected) -> Result<Known> {
        let collection = self.collection(connected);
        let find = collection.find_one(doc! { "_id": &self.id });
        let Some(document) = connected.within(STATEMENT, find).await? else {
            return Err(Error::internal(format!(
                "there is no {}: commit() was called before begin(), or somebody removed it",
                self.place()
            )));
        };
        if document.get_i64("generation").unwrap_or(i64::MAX) > self.generation {
            return Err(self.superseded());
        }
        known(&document)
    }

    /// Writes down what will be written: from here on whoever comes next writes it to its end.
    ///
    /// # Errors
    /// As `check`.
    pub async fn decide(&self, connected: &Connected, staged: &[Staged]) -> Result<()> {
        let pending: Vec<Bson> = staged
            .iter()
            .map(|part| Bson::Document(doc! { "collection": &part.collection, "rows": part.rows }))
            .collect();
        self.change(connected, doc! { "$set": { "pending": pending } })
            .await
    }

    /// Takes that back.
    ///
    /// # Errors
    /// As `check`.
    pub async fn undecide(&self, connected: &Connected) -> Result<()> {
        self.change(connected, doc! { "$unset": { "pending": "" } })
            .await
    }

    /// Writes an epoch down as being in.
    ///
    /// # Errors
    /// As `check`.
    pub async fn done(&self, connected: &Connected, epoch: u64) -> Result<()> {
        let done = doc! {
            "$set": { "epoch": signed(epoch), "committed_at": DateTime::now() },
            "$unset": { "pending": "" },
        };
        self.change(connected, done).await
    }

    async fn change(&self, connected: &Connected, update: Document) -> Result<()> {
        let mine = doc! { "_id": &self.id, "generation": self.generation };
        let collection = self.collection(connected);
        let update = collection.update_one(mine, update);
        let changed = connected.within(STATEMENT, update).await?;
        match changed.matched_count {
            0 => Err(self.superseded()),
            _ => Ok(()),
        }
    }

    fn superseded(&self) -> Error {
        Error::invalid(format!(
            "job {} was started again by another master: generation {} may not write to {} any more",
            self.job, self.generation, self.target
        ))
    }
}

fn known(document: &Document) -> Result<Known> {
    let wrong = |what: &str| Error::internal(format!("{COLLECTION}: {what}"));
    let epoch = document
        .get_i64("epoch")
        .map_err(|e| wrong(&e.to_string()))?;
    let staged = |part: &Bson| {
        let part = part.as_document()?;
        Some(Staged {
            collection: part.get_str("collection").ok()?.to_owned(),
            rows: part.get_i64("rows").ok()?,
        })
    };
    let pending = match document.get_array("pending") {
        Ok(parts) => {
            let parts: Option<Vec<Staged>> = parts.iter().map(staged).collect();
            Some(parts.ok_or_else(|| wrong("pending is of another version"))?)
        }
        Err(_) => None,
    };
    Ok(Known {
        // -1: nothing is in yet.
        epoch: u64::try_from(epoch).ok(),
        pending,
    })
}

/// BSON has no unsigned numbers; neither generations nor epochs come near the limit.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;

    #[test]
    fn ids_are_in_the_order_of_epochs() {
        let run = SinkRun {
            job: "0192-ab".to_owned(),
            query: 1,
            generation: 3,
            epoch: 0,
        };
        let commits = Commits::new("c", &run);
        assert_eq!(commits.ids(16), "0192ab_1_0000000000000010_");
        assert!(commits.ids(9) < commits.ids(10) && commits.ids(255) < commits.ids(4096));
    }

    #[test]
    fn what_was_written_down_is_read_back() {
        let document = doc! { "epoch": -1i64, "pending": [{ "collection": "s", "rows": 5i64 }] };
        let staged = Staged {
            collection: "s".to_owned(),
            rows: 5,
        };
        let expected = Known {
            epoch: None,
            pending: Some(vec![staged]),
        };
        assert_eq!(known(&document).unwrap(), expected);
        assert_eq!(known(&doc! { "epoch": 4i64 }).unwrap().epoch, Some(4));
        assert!(known(&doc! {}).is_err());
    }
}
