//! The OPTIONS of a table: each is taken once, by name and type; what is left over is an error with a suggestion.

use crate::error::{Error, Result};
use crate::secret::Secret;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

/// The options of one `CREATE EXTERNAL TABLE`. Names are lower case; values may be secret.
#[derive(Debug, Clone, Default)]
pub struct Options {
    table: String,
    values: BTreeMap<String, Secret>,
    known: Vec<&'static str>,
}

impl Options {
    /// The options of `table`, as DataFusion hands them over, with `${VAR}` filled in.
    ///
    /// # Errors
    /// A variable that is not set.
    pub fn new<'a>(
        table: &str,
        values: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self> {
        let mut options = Self {
            table: table.to_owned(),
            ..Self::default()
        };
        for (name, value) in values {
            // DataFusion puts a name without a dot into its namespace `format`.
            let name = name.strip_prefix("format.").unwrap_or(name);
            let value = Secret::expand(value)
                .map_err(|e| e.context(format!("table {table}, option {name}")))?;
            options.values.insert(name.to_ascii_lowercase(), value);
        }
        Ok(options)
    }

    /// Takes a text.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.secret(name).map(|value| value.expose().to_owned())
    }

    /// Takes a text that must not be shown.
    pub fn secret(&mut self, name: &'static str) -> Option<Secret> {
        self.known.push(name);
        self.values.remove(name)
    }

    /// Takes a text that must be there.
    ///
    /// # Errors
    /// It is not there.
    pub fn required(&mut self, name: &'static str) -> Result<String> {
        self.text(name)
            .ok_or_else(|| self.error(format!("option {name} is missing: add {name} '…'")))
    }

    /// Takes a value of any type that can be parsed.
    ///
    /// # Errors
    /// It does not parse; the message names the option.
    pub fn parsed<T>(&mut self, name: &'static str) -> Result<Option<T>>
    where
        T: FromStr,
        T::Err: Display,
    {
        self.text(name)
            .map(|text| {
                text.parse()
                    .map_err(|e| self.error(format!("option {name} '{text}': {e}")))
            })
            .transpose()
    }

    /// Takes one of some words, in any case; the first one is the default.
    ///
    /// # Errors
    /// Another word.
    pub fn one_of<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Result<T> {
        let Some(text) = self.text(name) else {
            return Ok(words[0].1);
        };
        words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(&text))
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let known: Vec<_> = words.iter().map(|(word, _)| format!("'{word}'")).collect();
                self.error(format!(
                    "option {name} '{text}': write {}",
                    known.join(" or ")
                ))
            })
    }

    /// Takes a list of names separated by commas; empty if the option is not there.
    pub fn names(&mut self, name: &'static str) -> Vec<String> {
        self.text(name)
            .unwrap_or_default()
            .split(',')
            .map(|part| part.trim().to_owned())
            .filter(|part| !part.is_empty())
            .collect()
    }

    /// Takes all options whose name begins with `prefix`, without it: settings handed on to a client library.
    pub fn with_prefix(&mut self, prefix: &'static str) -> BTreeMap<String, Secret> {
        let names: Vec<String> = self
            .values
            .keys()
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect();
        names
            .into_iter()
            .filter_map(|name| {
                let value = self.values.remove(&name)?;
                Some((name[prefix.len()..].to_owned(), value))
            })
            .collect()
    }

    /// Ends the reading of options.
    ///
    /// # Errors
    /// An option that nobody took; the message suggests the nearest known one.
    pub fn finish(self) -> Result<()> {
        let Some(name) = self.values.keys().next() else {
            return Ok(());
        };
        let nearest = self
            .known
            .iter()
            .map(|known| (distance(name, known), *known))
            .min()
            .filter(|(distance, _)| *distance <= 3);
        let hint = match nearest {
            Some((_, known)) => format!("did you mean {known}?"),
            None => {
                let mut known = self.known.clone();
                known.sort_unstable();
                known.dedup();
                format!("known are {}", known.join(", "))
            }
        };
        Err(self.error(format!("unknown option {name}: {hint}")))
    }

    /// An error that names the table.
    pub fn error(&self, message: impl Display) -> Error {
        Error::invalid(format!("table {}: {message}", self.table))
    }
}

/// Levenshtein distance between two names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_option_gets_a_suggestion() {
        let given = [("format.startin_offsets".to_owned(), "x".to_owned())];
        let mut options = Options::new("toots", given.iter().map(|(k, v)| (k, v))).unwrap();
        assert_eq!(options.text("starting_offsets"), None);
        let message = options.finish().unwrap_err().to_string();
        assert_eq!(
            message,
            "table toots: unknown option startin_offsets: did you mean starting_offsets?"
        );
    }
}
