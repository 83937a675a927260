//! A record with what is known of how it came, as one entry of the journal and as a worker receives it.

use crate::error::{Error, Result};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// What is known of a record beside itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The URL that it came from, without secrets, or the type of the event.
    #[serde(rename = "o")]
    pub origin: String,
    /// The id of the event.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The status of the answer that it was in.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// When it came, ms since 1970.
    #[serde(rename = "t")]
    pub at_ms: i64,
}

/// Something that the fetching must know after a restart, under a name: what has the name last counts.
pub type Mark = (String, String);

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub meta: Meta,
    /// Where the fetching stands with this record.
    pub mark: Option<Mark>,
    /// The record itself, in UTF-8.
    pub payload: Bytes,
}

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(flatten)]
    meta: Meta,
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    mark: Option<Mark>,
}

impl Entry {
    /// The head's length in four bytes, the head as JSON, the record.
    ///
    /// # Errors
    /// None: the head holds texts and numbers.
    pub fn encode(&self) -> Result<Bytes> {
        let head = Head {
            meta: self.meta.clone(),
            mark: self.mark.clone(),
        };
        let head = serde_json::to_vec(&head).map_err(|e| Error::internal(e.to_string()))?;
        let mut encoded = BytesMut::with_capacity(4 + head.len() + self.payload.len());
        encoded.put_u32(head.len() as u32);
        encoded.put_slice(&head);
        encoded.put_slice(&self.payload);
        Ok(encoded.freeze())
    }

    /// Reads back what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Bytes of another version.
    pub fn decode(encoded: &Bytes) -> Result<Self> {
        let wrong = || Error::internal("an entry of the journal is of another version");
        let (head, payload) = chunk(encoded).ok_or_else(wrong)?;
        let Head { meta, mark } = serde_json::from_slice(&head).map_err(|_| wrong())?;
        Ok(Self {
            meta,
            mark,
            payload,
        })
    }
}

/// Encoded entries one after the other, each behind its length in four bytes.
pub fn pack<'a>(entries: impl Iterator<Item = &'a Bytes>) -> Vec<u8> {
    let mut packed = Vec::new();
    for entry in entries {
        packed.put_u32(entry.len() as u32);
        packed.put_slice(entry);
    }
    packed
}

/// The entries that [`pack`] put together.
///
/// # Errors
/// Bytes of another version.
pub fn unpack(mut packed: Bytes) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    while !packed.is_empty() {
        let (entry, rest) =
            chunk(&packed).ok_or_else(|| Error::internal("a split is of another version"))?;
        entries.push(Entry::decode(&entry)?);
        packed = rest;
    }
    Ok(entries)
}

/// What stands behind its length, and the rest.
fn chunk(bytes: &Bytes) -> Option<(Bytes, Bytes)> {
    let (length, _) = bytes.split_first_chunk::<4>()?;
    let end = usize::try_from(u32::from_be_bytes(*length))
        .ok()?
        .checked_add(4)?;
    (end <= bytes.len()).then(|| (bytes.slice(4..end), bytes.slice(end..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_travel_whole() {
        let entry = Entry {
            meta: Meta {
                origin: "update".to_owned(),
                id: Some("7".to_owned()),
                status: None,
                at_ms: 12,
            },
            mark: Some(("last_event_id".to_owned(), "7".to_owned())),
            payload: Bytes::from_static(b"{}"),
        };
        let other = Entry {
            mark: None,
            payload: Bytes::new(),
            ..entry.clone()
        };
        let encoded = [entry.encode().unwrap(), other.encode().unwrap()];
        let packed = Bytes::from(pack(encoded.iter()));
        assert_eq!(unpack(packed.clone()).unwrap(), [entry, other]);
        assert!(unpack(packed.slice(..packed.len() - 1)).is_err());
    }
}
