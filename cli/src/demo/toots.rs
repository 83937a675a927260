//! The toots of the demo: the same ones each time but for the time, in the shape of Mastodon's API.

use chrono::{DateTime, SecondsFormat, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// Most toots are by the first of so many accounts, as on any network.
const BUSY_ACCOUNTS: u64 = 500;

const LANGUAGES: [(&str, &[&str]); 5] = [
    (
        "en",
        &[
            "the", "swarm", "leaves", "its", "old", "hive", "today", "honey",
        ],
    ),
    (
        "fr",
        &[
            "un", "essaim", "quitte", "sa", "vieille", "ruche", "été", "miel",
        ],
    ),
    (
        "de",
        &[
            "der",
            "Schwarm",
            "verlässt",
            "heute",
            "seinen",
            "Stock",
            "für",
            "Honig",
        ],
    ),
    (
        "es",
        &[
            "el", "enjambre", "deja", "su", "colmena", "mañana", "dulce", "miel",
        ],
    ),
    (
        "ja",
        &["蜂", "の", "群れ", "が", "古い", "巣", "を", "出る"],
    ),
];
const HASHTAGS: [&str; 8] = [
    "bees", "rust", "kafka", "postgres", "garden", "news", "art", "weather",
];

/// One toot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toot {
    pub id: u64,
    pub created_ms: i64,
    pub language: &'static str,
    /// Without the paragraph's tags that it is sent with.
    pub text: String,
    pub tags: Vec<&'static str>,
    /// From 1.
    pub account_id: u64,
}

/// Writes toots, without an end.
#[derive(Debug)]
pub struct Author {
    random: StdRng,
    written: u64,
    accounts: u64,
}

impl Author {
    /// Toots by accounts 1 to `accounts`.
    pub fn new(accounts: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(2),
            written: 0,
            accounts,
        }
    }

    /// The next toot; it is written at `created_ms`, ms since 1970.
    pub fn write(&mut self, created_ms: i64) -> Toot {
        let random = &mut self.random;
        let (language, words) = LANGUAGES[random.random_range(0..LANGUAGES.len())];
        let text: Vec<&str> = (0..random.random_range(6..12))
            .map(|_| words[random.random_range(0..words.len())])
            .collect();
        let mut tags: Vec<&str> = (0..random.random_range(0..4))
            .map(|_| HASHTAGS[random.random_range(0..HASHTAGS.len())])
            .collect();
        tags.sort_unstable();
        tags.dedup();
        let authors = match random.random_range(0..10) {
            0 => self.accounts,
            _ => self.accounts.min(BUSY_ACCOUNTS),
        };
        let id = self.written;
        self.written += 1;
        Toot {
            id,
            created_ms,
            language,
            text: text.join(" "),
            tags,
            account_id: 1 + random.random_range(0..authors),
        }
    }
}

impl Toot {
    /// As it is sent to Kafka.
    ///
    /// # Errors
    /// None: every field has a JSON.
    pub fn json(&self) -> serde_json::Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Message<'a> {
            id: u64,
            created_at: String,
            language: &'a str,
            content: String,
            tags: &'a [&'a str],
            account: Account,
        }
        #[derive(Serialize)]
        struct Account {
            id: u64,
            username: String,
        }
        serde_json::to_vec(&Message {
            id: self.id,
            created_at: self.created_at(),
            language: self.language,
            content: format!("<p>{}</p>", self.text),
            tags: &self.tags,
            account: Account {
                id: self.account_id,
                username: format!("user{}", self.account_id),
            },
        })
    }

    /// As a line of PostgreSQL's COPY in text format: `id, created_at, language, length, tags, account_id`.
    pub fn copy_line(&self) -> String {
        format!(
            "{}\t{}\t{}\t{}\t{{{}}}\t{}\n",
            self.id,
            self.created_at(),
            self.language,
            self.text.chars().count(),
            self.tags.join(","),
            self.account_id
        )
    }

    fn created_at(&self) -> String {
        DateTime::<Utc>::from_timestamp_millis(self.created_ms)
            .unwrap_or_default()
            .to_rfc3339_opts(SecondsFormat::Millis, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_demo_has_the_same_toots() {
        let toots = || {
            let mut author = Author::new(1000);
            (0..100).map(move |at| author.write(at)).collect::<Vec<_>>()
        };
        let first = toots();
        assert_eq!(first, toots());
        assert!(first.iter().all(|t| (1..=1000).contains(&t.account_id)));
        assert!(
            first
                .iter()
                .zip(0..)
                .all(|(t, n)| t.id == n && t.created_ms == n as i64)
        );
        assert!(first.iter().any(|t| t.tags.is_empty()));
    }

    #[test]
    fn a_toot_is_the_same_for_kafka_and_for_postgres() {
        let toot = Toot {
            id: 7,
            created_ms: 1_767_268_800_000,
            language: "fr",
            text: "été".to_owned(),
            tags: vec!["bees", "rust"],
            account_id: 3,
        };
        assert_eq!(
            String::from_utf8(toot.json().unwrap()).unwrap(),
            r#"{"id":7,"created_at":"2026-01-01T12:00:00.000Z","language":"fr","content":"<p>été</p>","tags":["bees","rust"],"account":{"id":3,"username":"user3"}}"#
        );
        assert_eq!(
            toot.copy_line(),
            "7\t2026-01-01T12:00:00.000Z\tfr\t3\t{bees,rust}\t3\n"
        );
    }
}
