//! What a session has declared: the master keeps no session, so the client sends this along with every statement.

use super::split::{Kind, tokens};

/// What a statement changes in its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it asks or writes.
    None,
    /// `SET name = …`
    Set(String),
    /// `RESET name`
    Reset(String),
    /// `CREATE EXTERNAL TABLE` or `CREATE VIEW`.
    Create { kind: &'static str, name: String },
    /// `DROP TABLE` or `DROP VIEW`.
    Drop(Vec<String>),
}

impl Effect {
    /// Reads it off the first words of a statement. Names are compared as SQL does: lower case unless quoted.
    pub fn of(sql: &str) -> Self {
        let words: Vec<String> = tokens(sql).take(64).map(word).collect();
        let mut words = Words(&words);
        if words.skip(&["set"]) {
            return Self::Set(words.up_to(&["=", "to"]));
        }
        if words.skip(&["reset"]) {
            return Self::Reset(words.up_to(&["="]));
        }
        if words.skip(&["create"]) {
            words.skip(&["or", "replace"]);
            words.skip(&["unbounded"]);
            let kind = if words.skip(&["external", "table"]) {
                "table"
            } else {
                let _ = words.skip(&["temp"]) || words.skip(&["temporary"]);
                words.skip(&["materialized"]);
                if !words.skip(&["view"]) {
                    return Self::None;
                }
                "view"
            };
            words.skip(&["if", "not", "exists"]);
            let name = words.name();
            return Self::Create { kind, name };
        }
        if words.skip(&["drop", "table"]) || words.skip(&["drop", "view"]) {
            words.skip(&["if", "exists"]);
            let mut names = vec![words.name()];
            while words.skip(&[","]) {
                names.push(words.name());
            }
            return Self::Drop(names);
        }
        Self::None
    }
}

fn word((kind, text): (Kind, &str)) -> String {
    match kind {
        // Marked, so that a quoted "view" is no key word.
        Kind::Name => {
            let quote = &text[..1];
            let inner = text[1..].strip_suffix(quote).unwrap_or(&text[1..]);
            format!("\"{}", inner.replace(&quote.repeat(2), quote))
        }
        _ => text.to_lowercase(),
    }
}

struct Words<'a>(&'a [String]);

impl Words<'_> {
    /// Goes behind these words if they come next.
    fn skip(&mut self, words: &[&str]) -> bool {
        let matches = self.0.len() >= words.len() && self.0.iter().zip(words).all(|(a, b)| a == b);
        if matches {
            self.0 = &self.0[words.len()..];
        }
        matches
    }

    /// Takes a name with its qualifiers.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let [part, rest @ ..] = self.0 {
            name.push_str(part.strip_prefix('"').unwrap_or(part));
            self.0 = rest;
            if !self.skip(&["."]) {
                break;
            }
            name.push('.');
        }
        name
    }

    fn up_to(&self, ends: &[&str]) -> String {
        self.0
            .iter()
            .take_while(|word| !ends.contains(&word.as_str()))
            .map(String::as_str)
            .collect()
    }
}

/// A setting of Essaim goes by its name with and without the prefix.
fn without_prefix(setting: &str) -> &str {
    setting.strip_prefix("essaim.").unwrap_or(setting)
}

/// A statement that set the stage.
#[derive(Debug, Clone)]
struct Declaration {
    sql: String,
    effect: Effect,
}

/// The declarations of a session, in the order in which they were made.
///
/// A second declaration of a name is kept behind the first: a view made in between may read the first one.
#[derive(Debug, Clone, Default)]
pub struct Declared(Vec<Declaration>);

impl Declared {
    /// The statements to run before any other.
    pub fn setup(&self) -> Vec<String> {
        self.0.iter().map(|made| made.sql.clone()).collect()
    }

    /// The same session after a statement that succeeded.
    pub fn after(&self, sql: &str, effect: &Effect) -> Self {
        let mut after = self.clone();
        match effect {
            Effect::None => {}
            Effect::Set(_) | Effect::Create { .. } => after.0.push(Declaration {
                sql: sql.to_owned(),
                effect: effect.clone(),
            }),
            Effect::Reset(name) => after.0.retain(|made| match &made.effect {
                Effect::Set(set) => without_prefix(set) != without_prefix(name),
                _ => true,
            }),
            Effect::Drop(names) => after.0.retain(|made| match &made.effect {
                Effect::Create { name, .. } => !names.contains(name),
                _ => true,
            }),
        }
        after
    }

    /// Kind, name and statement of each table and view, as last declared.
    pub fn relations(&self) -> Vec<(&'static str, &str, &str)> {
        let mut relations: Vec<(&'static str, &str, &str)> = Vec::new();
        for made in &self.0 {
            if let Effect::Create { kind, name } = &made.effect {
                relations.retain(|(_, earlier, _)| earlier != name);
                relations.push((kind, name, &made.sql));
            }
        }
        relations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(kind: &'static str, name: &str) -> Effect {
        Effect::Create {
            kind,
            name: name.into(),
        }
    }

    #[test]
    fn declarations_are_recognised_in_all_their_spellings() {
        for (sql, effect) in [
            (
                "CREATE EXTERNAL TABLE Toots (id INT)",
                create("table", "toots"),
            ),
            (
                "-- t\ncreate or replace unbounded external table if not exists a.b",
                create("table", "a.b"),
            ),
            (
                "CREATE VIEW \"My \"\"View\" AS SELECT 1",
                create("view", "My \"View"),
            ),
            ("CREATE TEMPORARY VIEW v AS SELECT 1", create("view", "v")),
            (
                "SET essaim.trigger = '1 s'",
                Effect::Set("essaim.trigger".into()),
            ),
            ("SET a TO 1", Effect::Set("a".into())),
            ("RESET a", Effect::Reset("a".into())),
            (
                "DROP VIEW IF EXISTS v, w",
                Effect::Drop(vec!["v".into(), "w".into()]),
            ),
            ("DROP TABLE t", Effect::Drop(vec!["t".into()])),
            ("SELECT 'CREATE VIEW v'", Effect::None),
            ("CREATE TABLE t AS SELECT 1", Effect::None),
            ("INSERT INTO t SELECT 1", Effect::None),
            ("", Effect::None),
        ] {
            assert_eq!(Effect::of(sql), effect, "{sql}");
        }
    }

    fn session(statements: &[&str]) -> Declared {
        statements.iter().fold(Declared::default(), |session, sql| {
            session.after(sql, &Effect::of(sql))
        })
    }

    #[test]
    fn a_session_replays_what_it_declared() {
        let session = session(&["SET a = 1", "CREATE VIEW v AS SELECT 1", "SELECT * FROM v"]);
        assert_eq!(session.setup(), ["SET a = 1", "CREATE VIEW v AS SELECT 1"]);
    }

    #[test]
    fn what_is_dropped_or_reset_is_forgotten() {
        let session = session(&[
            "SET a = 1",
            "CREATE VIEW v AS SELECT 1",
            "CREATE OR REPLACE VIEW v AS SELECT 2",
            "CREATE VIEW w AS SELECT 3",
            "DROP VIEW v",
            "RESET a",
            "SET essaim.max_attempts = 2",
            "RESET max_attempts",
        ]);
        assert_eq!(session.setup(), ["CREATE VIEW w AS SELECT 3"]);
        assert_eq!(
            session.relations(),
            [("view", "w", "CREATE VIEW w AS SELECT 3")]
        );
    }

    #[test]
    fn a_view_declared_again_is_listed_once_and_replayed_twice() {
        let session = session(&[
            "CREATE VIEW v AS SELECT 1",
            "CREATE OR REPLACE VIEW v AS SELECT 2 FROM v",
        ]);
        assert_eq!(session.setup().len(), 2);
        assert_eq!(session.relations().len(), 1);
    }
}
