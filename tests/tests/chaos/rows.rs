//! The known rows: each message follows from the seed, its number, and how far the watermark is known to be.

use serde_json::json;

/// Partitions of the topic.
pub const PARTITIONS: i32 = 4;
/// Width of all windows, ms of event time.
pub const WINDOW_MS: i64 = 10_000;
/// The watermark's delay, ms.
pub const DELAY_MS: i64 = 10_000;
/// 2026-01-01: when the first event happened, ms since 1970-01-01 UTC.
pub const FIRST_MS: i64 = 1_767_225_600_000;
/// Event time between a message and the next, ms.
const STEP_MS: i64 = 5;
/// How far messages are out of order, ms of event time. With [`REPEATS`] steps it stays below the delay, so that no
/// such row is ever late: it would have to be behind the highest time before it in its own partition by the delay.
const DISORDER_MS: i64 = 4_000;
/// How many messages later an id may come again.
const REPEATS: u64 = 800;
const KINDS: u64 = 8;

/// What is in a row beside its time. It follows from its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub kind: u64,
    pub amount: i64,
}

impl Content {
    pub fn of(seed: u64, id: u64) -> Self {
        let random = mix(seed, id, 1);
        Self {
            kind: random % KINDS,
            amount: (random >> 16) as i64 % 1_000,
        }
    }

    /// Whether the filter of the copy into Kafka lets it pass; as in its SQL.
    pub fn is_copied(&self) -> bool {
        self.amount % 3 != 0
    }
}

/// What the producer sends as number `n`.
#[derive(Debug)]
pub struct Sent {
    pub partition: i32,
    pub payload: String,
}

/// Message number `n`. Late ones have windows that ended before `watermark`, ms.
pub fn message(seed: u64, n: u64, watermark: Option<i64>) -> Sent {
    let random = mix(seed, n, 2);
    let partition = (random >> 32) as i32 & (PARTITIONS - 1);
    let payload = match random % 300 {
        0 => malformed(random >> 40, n),
        1 | 2 => {
            let back = 1 + (random >> 40) % REPEATS;
            match n.checked_sub(back).filter(|m| is_plain(seed, *m)) {
                Some(earlier) => row(seed, earlier, time(seed, earlier)),
                None => row(seed, n, time(seed, n)),
            }
        }
        3 => {
            // The last window that is known to have closed ends here.
            let closed = watermark.map(|w| w - w.rem_euclid(WINDOW_MS) - FIRST_MS);
            match closed.filter(|closed| *closed > 0) {
                Some(closed) => row(seed, n, FIRST_MS + (random >> 40) as i64 % closed),
                None => row(seed, n, time(seed, n)),
            }
        }
        _ => row(seed, n, time(seed, n)),
    };
    Sent { partition, payload }
}

/// Whether message `n` is a row of its own in time.
fn is_plain(seed: u64, n: u64) -> bool {
    mix(seed, n, 2) % 300 > 3
}

/// The event time of row `n`, ms: out of order within [`DISORDER_MS`].
fn time(seed: u64, n: u64) -> i64 {
    let disorder = mix(seed, n, 3) as i64 & i64::MAX;
    FIRST_MS + n as i64 * STEP_MS + DISORDER_MS - disorder % DISORDER_MS
}

fn row(seed: u64, id: u64, at: i64) -> String {
    let Content { kind, amount } = Content::of(seed, id);
    json!({"id": id, "at": at, "kind": format!("kind {kind}"), "amount": amount}).to_string()
}

fn malformed(random: u64, n: u64) -> String {
    match random % 5 {
        0 => format!("{{\"id\": {n}, \"at\":"),
        1 => format!("[{n}]"),
        2 => String::new(),
        3 => format!("{{\"id\": {n}}} {{}}"),
        _ => "not JSON, and it's \"quoted\"".to_owned(),
    }
}

/// A random number that follows from its arguments (SplitMix64, Steele et al. 2014).
fn mix(seed: u64, n: u64, salt: u64) -> u64 {
    let mut z = seed
        .wrapping_add(salt.wrapping_mul(0xd6e8_feb8_6659_fd93))
        .wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
