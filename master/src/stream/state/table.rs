//! A hash table that grows bucket by bucket, whose buckets a snapshot shares until they change.
//!
//! Linear hashing (Litwin 1980): a table of n buckets grows by splitting one of them, so no single insertion pays for
//! all entries. Buckets are small, as a bucket that a snapshot still holds is copied before its first change.

use std::collections::BTreeSet;
use std::hash::Hasher;
use std::sync::Arc;

/// Entries for each bucket, on average, at most.
const LOAD: usize = 32;
/// What one entry takes beside its bytes: itself, the counts of its [`Arc`].
const ENTRY_BYTES: usize = size_of::<Entry>() + 2 * size_of::<usize>();
/// What an entry takes in the index by expiry: itself, in nodes that are about two thirds full.
const EXPIRY_BYTES: usize = size_of::<(i64, u64)>() * 3 / 2;
/// The expiry of what is kept for good.
pub(super) const NEVER: i64 = i64::MAX;

pub(super) type Bucket = Arc<Vec<Entry>>;

/// A key with its value. A copy shares the bytes.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    hash: u64,
    expires_ms: i64,
    key_len: usize,
    bytes: Arc<[u8]>,
}

impl Entry {
    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[..self.key_len]
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.bytes[self.key_len..]
    }

    pub(super) fn expires_ms(&self) -> i64 {
        self.expires_ms
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn is(&self, hash: u64, key: &[u8]) -> bool {
        self.hash == hash && self.key() == key
    }

    fn size(&self) -> usize {
        let index = if self.expires_ms == NEVER {
            0
        } else {
            EXPIRY_BYTES
        };
        self.bytes.len() + ENTRY_BYTES + index
    }
}

/// Keys with values and expiries. A copy shares the buckets.
#[derive(Debug, Clone)]
pub(super) struct Table {
    buckets: Vec<Bucket>,
    rows: usize,
    /// Of all entries.
    bytes: usize,
    /// (expiry, hash) of every entry that expires, once for entries that agree in both.
    expiries: BTreeSet<(i64, u64)>,
}

impl Table {
    pub(super) fn with_capacity(rows: usize) -> Self {
        Self {
            buckets: (0..rows.div_ceil(LOAD).max(1))
                .map(|_| Bucket::default())
                .collect(),
            rows: 0,
            bytes: 0,
            expiries: BTreeSet::new(),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.buckets.len() * (size_of::<Bucket>() + size_of::<Vec<Entry>>())
    }

    pub(super) fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        let hash = hash(key);
        self.buckets[self.bucket_of(hash)]
            .iter()
            .find(|entry| entry.is(hash, key))
    }

    /// Puts an entry in, in place of that with the same key.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8], expires_ms: i64) {
        let hash = hash(key);
        if let Some(old) = self.place(hash, key, value, expires_ms)
            && old != expires_ms
        {
            self.forget_expiry(old, hash);
        }
        if expires_ms != NEVER {
            self.expiries.insert((expires_ms, hash));
        }
    }

    /// Fills an empty table.
    pub(super) fn fill<'a>(
        &mut self,
        rows: impl Iterator<Item = (&'a [u8], &'a [u8], i64)>,
    ) -> Vec<(i64, u64)> {
        rows.filter_map(|(key, value, expires_ms)| {
            let hash = hash(key);
            self.place(hash, key, value, expires_ms);
            (expires_ms != NEVER).then_some((expires_ms, hash))
        })
        .collect()
    }

    /// Makes the index by expiry at once: what [`Self::fill`] gave.
    pub(super) fn index(&mut self, expiries: Vec<(i64, u64)>) {
        self.expiries = expiries.into_iter().collect();
    }

    /// Puts an entry in its bucket, and tells the expiry of the one whose place it took.
    fn place(&mut self, hash: u64, key: &[u8], value: &[u8], expires_ms: i64) -> Option<i64> {
        let entry = Entry {
            hash,
            expires_ms,
            key_len: key.len(),
            bytes: [key, value].concat().into(),
        };
        let position = self.bucket_of(hash);
        let bucket = Arc::make_mut(&mut self.buckets[position]);
        self.bytes += entry.size();
        if let Some(old) = bucket.iter_mut().find(|entry| entry.is(hash, key)) {
            let old = std::mem::replace(old, entry);
            self.bytes -= old.size();
            return Some(old.expires_ms);
        }
        bucket.push(entry);
        self.rows += 1;
        if self.rows > self.buckets.len() * LOAD {
            self.split();
        }
        None
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        let hash = hash(key);
        let position = self.bucket_of(hash);
        let found = self.buckets[position]
            .iter()
            .position(|entry| entry.is(hash, key));
        if let Some(found) = found {
            let old = Arc::make_mut(&mut self.buckets[position]).swap_remove(found);
            self.rows -= 1;
            self.bytes -= old.size();
            self.forget_expiry(old.expires_ms, hash);
            self.shrink();
        }
    }

    /// The entries that expire at `until_ms` or before, those that expire first at first.
    pub(super) fn expired(&self, until_ms: i64) -> impl Iterator<Item = &Entry> {
        self.expiries
            .iter()
            .take_while(move |(expires_ms, _)| *expires_ms <= until_ms)
            .flat_map(|&(expires_ms, hash)| {
                self.buckets[self.bucket_of(hash)]
                    .iter()
                    .filter(move |entry| entry.hash == hash && entry.expires_ms == expires_ms)
            })
    }

    pub(super) fn remove_expired(&mut self, until_ms: i64) {
        while let Some(&(expires_ms, hash)) = self.expiries.first()
            && expires_ms <= until_ms
        {
            self.expiries.pop_first();
            let position = self.bucket_of(hash);
            let bucket = Arc::make_mut(&mut self.buckets[position]);
            for old in bucket.extract_if(.., |entry| {
                entry.hash == hash && entry.expires_ms == expires_ms
            }) {
                self.rows -= 1;
                self.bytes -= old.size();
            }
            self.shrink();
        }
    }

    /// Takes an expiry out of the index, unless another entry with the same hash has it too.
    fn forget_expiry(&mut self, expires_ms: i64, hash: u64) {
        let shared = self.buckets[self.bucket_of(hash)]
            .iter()
            .any(|entry| entry.hash == hash && entry.expires_ms == expires_ms);
        if !shared {
            self.expiries.remove(&(expires_ms, hash));
        }
    }

    fn bucket_of(&self, hash: u64) -> usize {
        let count = self.buckets.len();
        let level = 1_usize << count.ilog2();
        let wide = hash as usize & (2 * level - 1);
        if wide < count {
            wide
        } else {
            hash as usize & (level - 1)
        }
    }

    /// One bucket more: half of the entries of one go there.
    fn split(&mut self) {
        let new = self.buckets.len();
        let level = 1_usize << new.ilog2();
        let source = Arc::make_mut(&mut self.buckets[new - level]);
        let moved = source
            .extract_if(.., |entry| entry.hash as usize & (2 * level - 1) == new)
            .collect::<Vec<_>>();
        self.buckets.push(Arc::new(moved));
    }

    /// One bucket less, if there are many too many.
    fn shrink(&mut self) {
        if self.rows * 4 >= self.buckets.len() * LOAD || self.buckets.len() == 1 {
            return;
        }
        if let Some(last) = self.buckets.pop() {
            let into = self.buckets.len();
            let into = into - (1_usize << into.ilog2());
            Arc::make_mut(&mut self.buckets[into]).extend(Arc::unwrap_or_clone(last));
        }
    }
}

/// The same in every run, as it decides the order in which groups are emitted.
fn hash(key: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(key);
    hasher.finish()
}
