//! The bytes of an object of a checkpoint: what it is, and a checksum over all that it holds.
//!
//! ```text
//! "ESSAIM" | kind: u8 | version: u16 | payload bytes: u64 | CRC-32 of the payload: u32 | payload
//! payload = head bytes: u32 | head: JSON {"meta": …, "parts": [[operator, bytes], …]} | the parts, one after another
//! ```
//! Numbers are little-endian.

use bytes::{Buf, Bytes};
use essaim_common::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 6] = b"ESSAIM";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 6 + 1 + 2 + 8 + 4;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Kind {
    Fingerprint = b'F',
    Generation = b'G',
    Plan = b'P',
    Commit = b'C',
    Snapshot = b'S',
    Journal = b'J',
}

/// State of operators: an operator's id and bytes of it, in the order in which they were written.
pub(super) type Parts = Vec<(String, Bytes)>;

#[derive(Debug, Serialize, Deserialize)]
struct Head<M> {
    meta: M,
    parts: Vec<(String, u64)>,
}

/// The chunks of an object. The parts are not copied.
pub(super) fn encode<M: Serialize>(kind: Kind, meta: &M, parts: Parts) -> Result<Vec<Bytes>> {
    let lengths = parts
        .iter()
        .map(|(operator, bytes)| (operator.clone(), bytes.len() as u64))
        .collect();
    let head = Head {
        meta,
        parts: lengths,
    };
    let head = serde_json::to_vec(&head)
        .map_err(|e| Error::internal(format!("a checkpoint cannot be encoded: {e}")))?;
    let head_bytes = u32::try_from(head.len())
        .map_err(|_| Error::internal("the head of a checkpoint is over 4 GiB"))?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head_bytes.to_le_bytes());
    crc.update(&head);
    let mut payload = 4 + head.len();
    for (_, bytes) in &parts {
        crc.update(bytes);
        payload += bytes.len();
    }
    let mut first = Vec::with_capacity(HEADER_BYTES + 4 + head.len());
    first.extend_from_slice(MAGIC);
    first.push(kind as u8);
    first.extend_from_slice(&VERSION.to_le_bytes());
    first.extend_from_slice(&(payload as u64).to_le_bytes());
    first.extend_from_slice(&crc.finalize().to_le_bytes());
    first.extend_from_slice(&head_bytes.to_le_bytes());
    first.extend_from_slice(&head);
    let mut content = vec![Bytes::from(first)];
    content.extend(parts.into_iter().map(|(_, bytes)| bytes));
    Ok(content)
}

/// What an object holds. The parts share its bytes. An error (kind `Data`) says what is wrong with it.
pub(super) fn decode<M: DeserializeOwned>(kind: Kind, object: Bytes) -> Result<(M, Parts)> {
    let mut rest = object;
    if rest.len() < HEADER_BYTES {
        return Err(Error::data("it is cut short: not even its header is whole"));
    }
    if &*rest.split_to(MAGIC.len()) != MAGIC {
        return Err(Error::data("it does not begin with ESSAIM"));
    }
    let found = rest.get_u8();
    let version = rest.get_u16_le();
    if version != VERSION {
        return Err(Error::data(format!(
            "its format has version {version}, this program reads version {VERSION}"
        )));
    }
    if found != kind as u8 {
        return Err(Error::data("it is of another kind than its name says"));
    }
    let (payload, crc) = (rest.get_u64_le(), rest.get_u32_le());
    if payload != rest.len() as u64 {
        return Err(Error::data(format!(
            "it should hold {payload} bytes and holds {}",
            rest.len()
        )));
    }
    if crc32fast::hash(&rest) != crc {
        return Err(Error::data("its checksum does not fit its content"));
    }
    body(rest).ok_or_else(|| Error::data("its checksum fits, its content is none of this program"))
}

fn body<M: DeserializeOwned>(mut rest: Bytes) -> Option<(M, Parts)> {
    let head_bytes = rest.try_get_u32_le().ok()? as usize;
    if head_bytes > rest.len() {
        return None;
    }
    let head: Head<M> = serde_json::from_slice(&rest.split_to(head_bytes)).ok()?;
    let mut parts = Vec::with_capacity(head.parts.len());
    for (operator, bytes) in head.parts {
        let bytes = usize::try_from(bytes).ok()?;
        if bytes > rest.len() {
            return None;
        }
        parts.push((operator, rest.split_to(bytes)));
    }
    rest.is_empty().then_some((head.meta, parts))
}
