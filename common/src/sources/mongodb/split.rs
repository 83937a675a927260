//! Where a collection is cut: by ranges of `_id` that together hold every document once, whatever its `_id` is.

use super::client::{Connected, SCAN, STATEMENT};
use crate::error::{Error, Result};
use mongodb::bson::spec::ElementType;
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Documents that a split has at least: a smaller one is not worth its query.
const MIN_DOCUMENTS: u64 = 10_000;
/// `_id`s that are looked at for each split.
const PER_SPLIT: usize = 32;

/// A range of `_id`s, as MongoDB's extended JSON. A comparison finds only values of the bound's own type (numbers are
/// one): so the bounds of all ranges have one type, and the last range is whatever is *not* below its bound, which takes
/// in all other types, NaN, and documents without `_id` as a view may have them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Range {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    below: Option<serde_json::Value>,
}

impl Range {
    fn new(from: Option<&Bson>, below: Option<&Bson>) -> Self {
        let json = |bound: &Bson| bound.clone().into_canonical_extjson();
        Self {
            from: from.map(json),
            below: below.map(json),
        }
    }

    /// The query of the range; `None` for all documents.
    ///
    /// # Errors
    /// A payload of another version.
    pub fn query(&self) -> Result<Option<Document>> {
        let bound = |json: &serde_json::Value| {
            Bson::try_from(json.clone())
                .map_err(|e| Error::internal(format!("a MongoDB split of another version: {e}")))
        };
        Ok(match (&self.from, &self.below) {
            (None, None) => None,
            (None, Some(below)) => Some(doc! { "_id": { "$lt": bound(below)? } }),
            (Some(from), Some(below)) => {
                Some(doc! { "_id": { "$gte": bound(from)?, "$lt": bound(below)? } })
            }
            (Some(from), None) => Some(doc! { "_id": { "$not": { "$lt": bound(from)? } } }),
        })
    }
}

/// About `target` ranges, fewer if the collection is small, and about how many documents each has.
///
/// # Errors
/// Of the server.
pub async fn cut(
    connected: &Connected,
    collection: &str,
    target: usize,
) -> Result<(Vec<Range>, Option<u64>)> {
    let whole = |rows| Ok((vec![Range::default()], rows));
    // The rows of a view are computed: each range would do it all again.
    let found = connected.find_collection(collection).await?;
    if found.is_none_or(|found| found.kind != "collection") {
        return whole(None);
    }
    let count = connected.raw(collection);
    let count = connected
        .within(STATEMENT, count.estimated_document_count())
        .await?;
    let wanted = usize::try_from(count / MIN_DOCUMENTS).unwrap_or(usize::MAX);
    let wanted = wanted.min(target);
    if wanted <= 1 {
        return whole(Some(count));
    }
    let stages = vec![
        doc! { "$sort": { "_id": 1 } },
        doc! { "$project": { "_id": 1 } },
    ];
    let sample = connected
        .sample(collection, wanted * PER_SPLIT, stages)
        .await?;
    let ids = match sample {
        // Sorted by the server, which knows the collection's collation.
        Some(sample) => of_one_type(ids(&sample)?),
        None => {
            let mut ids = of_one_type(walk(connected, collection, wanted * PER_SPLIT).await?);
            if ids.iter().any(|id| compare(id, id).is_none()) {
                return whole(Some(count));
            }
            ids.sort_by(|a, b| compare(a, b).unwrap_or(Ordering::Equal));
            ids
        }
    };
    // Documents are compared field by field, and JSON, as which bounds travel, does not keep the order of fields.
    if ids.iter().any(|id| matches!(id, Bson::Document(_))) {
        return whole(Some(count));
    }
    let ranges = ranges(ids, wanted);
    let rows = count / ranges.len().max(1) as u64;
    Ok((ranges, Some(rows)))
}

/// The ranges between `wanted - 1` of sorted `_id`s.
fn ranges(mut ids: Vec<Bson>, wanted: usize) -> Vec<Range> {
    ids.dedup();
    let mut bounds: Vec<&Bson> = (1..wanted)
        .filter_map(|cut| ids.get(cut * ids.len() / wanted))
        .collect();
    bounds.dedup();
    let starts = std::iter::once(None).chain(bounds.iter().copied().map(Some));
    let ends = bounds.iter().copied().map(Some).chain([None]);
    starts
        .zip(ends)
        .map(|(from, below)| Range::new(from, below))
        .collect()
}

fn ids(documents: &[RawDocumentBuf]) -> Result<Vec<Bson>> {
    let mut ids = Vec::with_capacity(documents.len());
    for document in documents {
        let id = document.get("_id").ok().flatten();
        if let Some(id) = id {
            ids.push(
                Bson::try_from(id).map_err(|e| Error::data(format!("an _id is broken: {e}")))?,
            );
        }
    }
    Ok(ids)
}

/// Reads the `_id` of every document and keeps about `size` of them, evenly spaced: for a server without `$sample`.
async fn walk(connected: &Connected, collection: &str, size: usize) -> Result<Vec<Bson>> {
    let collection = connected.raw(collection);
    let find = collection.find(doc! {}).projection(doc! { "_id": 1 });
    let mut cursor = connected.within(SCAN, find).await?;
    let (mut kept, mut seen, mut stride) = (Vec::new(), 0usize, 1usize);
    while connected.within(SCAN, cursor.advance()).await? {
        if seen.is_multiple_of(stride) {
            kept.push(cursor.current().to_owned());
            if kept.len() == 2 * size {
                let mut number = 0;
                kept.retain(|_| {
                    number += 1;
                    number % 2 == 1
                });
                stride *= 2;
            }
        }
        seen += 1;
    }
    ids(&kept)
}

/// The `_id`s of the type that most of them have; their order stays.
fn of_one_type(mut ids: Vec<Bson>) -> Vec<Bson> {
    let mut counts: Vec<(ElementType, usize)> = Vec::new();
    for id in &ids {
        match counts.iter_mut().find(|(of, _)| *of == bracket(id)) {
            Some((_, count)) => *count += 1,
            None => counts.push((bracket(id), 1)),
        }
    }
    let most = counts
        .iter()
        .max_by_key(|(_, count)| *count)
        .map(|(of, _)| *of);
    ids.retain(|id| Some(bracket(id)) == most && !matches!(id, Bson::Double(n) if n.is_nan()));
    ids
}

/// What a comparison finds together: all numbers, or the values of one type.
fn bracket(id: &Bson) -> ElementType {
    match id {
        Bson::Int32(_) | Bson::Int64(_) | Bson::Decimal128(_) => ElementType::Double,
        Bson::Symbol(_) => ElementType::String,
        other => other.element_type(),
    }
}

/// The order of two `_id`s of one type on the server, where it is known.
fn compare(a: &Bson, b: &Bson) -> Option<Ordering> {
    match (a, b) {
        (Bson::ObjectId(a), Bson::ObjectId(b)) => Some(a.bytes().cmp(&b.bytes())),
        (Bson::String(a), Bson::String(b)) => Some(a.cmp(b)),
        (Bson::DateTime(a), Bson::DateTime(b)) => Some(a.cmp(b)),
        _ => {
            let whole = |id: &Bson| match id {
                Bson::Int32(n) => Some(i64::from(*n)),
                Bson::Int64(n) => Some(*n),
                _ => None,
            };
            if let (Some(a), Some(b)) = (whole(a), whole(b)) {
                return Some(a.cmp(&b));
            }
            let number = |id: &Bson| match id {
                Bson::Double(n) => Some(*n),
                other => whole(other).map(|n| n as f64),
            };
            number(a)?.partial_cmp(&number(b)?)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;

    #[test]
    fn ranges_meet_and_the_last_takes_what_is_left() {
        let ids = (0..90).map(Bson::Int32).collect();
        let queries: Vec<Document> = ranges(ids, 3)
            .iter()
            .map(|range| range.query().unwrap().unwrap())
            .collect();
        assert_eq!(
            queries,
            [
                doc! { "_id": { "$lt": 30 } },
                doc! { "_id": { "$gte": 30, "$lt": 60 } },
                doc! { "_id": { "$not": { "$lt": 60 } } },
            ]
        );
    }

    #[test]
    fn without_different_ids_there_is_one_range() {
        assert_eq!(ranges(Vec::new(), 4), [Range::default()]);
        assert_eq!(Range::default().query().unwrap(), None);
        let two = ranges(vec![Bson::Int32(7); 50], 4);
        assert_eq!(two.len(), 2, "below 7, and the rest: {two:?}");
    }

    #[test]
    fn bounds_are_of_the_commonest_type() {
        let ids = vec![
            Bson::String("a".into()),
            Bson::Int32(1),
            Bson::Double(f64::NAN),
            Bson::Int64(2),
        ];
        assert_eq!(of_one_type(ids), [Bson::Int32(1), Bson::Int64(2)]);
    }
}
