//! The OPTIONS of a table: each is taken once, by name and type; what is left over is an error with a suggestion.

use crate::access::access;
use crate::error::{Error, Result};
use crate::secret::{Secret, fill};
use arrow::compute::kernels::cast_utils::parse_interval_month_day_nano;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

/// The options of one `CREATE EXTERNAL TABLE`. Names are lower case; values may be secret.
#[derive(Debug, Clone, Default)]
pub struct Options {
    table: String,
    values: BTreeMap<String, Secret>,
    known: Vec<&'static str>,
    /// The variables that were filled in and their values, which no error shows.
    variables: Vec<(String, Secret)>,
}

impl Options {
    /// The options of `table`, as DataFusion hands them over, with `${VAR}` filled in.
    ///
    /// # Errors
    /// A variable that is not set or not for jobs.
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
            let value = options
                .fill(value)
                .map_err(|e| e.context(format!("table {table}, option {name}")))?;
            options.values.insert(name.to_ascii_lowercase(), value);
        }
        Ok(options)
    }

    /// Fills in every `${VAR}` of a text that stands beside the options, such as LOCATION. Errors of the options show
    /// none of the values from then on.
    ///
    /// # Errors
    /// A variable that is not set or not for jobs, or a `${` without its `}`.
    pub fn fill(&mut self, text: &str) -> Result<Secret> {
        let filled = fill(text, |variable| {
            let value = access().variable(variable)?;
            let hidden = (variable.to_owned(), Secret::new(value.as_str()));
            self.variables.push(hidden);
            Ok(value)
        })?;
        Ok(Secret::new(filled))
    }

    /// The values that were filled in for variables, which must not be shown.
    pub fn filled_in(&self) -> impl Iterator<Item = &Secret> {
        self.variables.iter().map(|(_, value)| value)
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

    /// Takes a duration such as `10 seconds`, in ms.
    ///
    /// # Errors
    /// No duration.
    pub fn duration_ms(&mut self, name: &'static str) -> Result<Option<i64>> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let ms = duration_ms(&text).and_then(|ms| i64::try_from(ms).ok());
        ms.map(Some).ok_or_else(|| self.not_a_duration(name, &text))
    }

    /// Takes a duration that is longer than 0, in ms.
    ///
    /// # Errors
    /// No duration, or 0.
    pub fn timeout_ms(&mut self, name: &'static str, default: u64) -> Result<u64> {
        match self.text(name) {
            Some(text) => duration_ms(&text)
                .filter(|ms| *ms > 0)
                .ok_or_else(|| self.not_a_duration(name, &text)),
            None => Ok(default),
        }
    }

    fn not_a_duration(&self, name: &str, text: &str) -> Error {
        self.error(format!(
            "option {name} '{text}' is no duration: write for example '10 seconds' or '500 milliseconds'"
        ))
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
        let hint = match nearest(name, self.known.iter().copied()) {
            Some(known) => format!("did you mean {known}?"),
            None => {
                let mut known = self.known.clone();
                known.sort_unstable();
                known.dedup();
                format!("known are {}", known.join(", "))
            }
        };
        Err(self.error(format!("unknown option {name}: {hint}")))
    }

    /// An error that names the table. What was filled in for a variable is shown as the variable again.
    pub fn error(&self, message: impl Display) -> Error {
        let mut message = message.to_string();
        for (name, value) in &self.variables {
            // A text as short as that is no secret, and stands in any message by chance.
            if value.expose().len() > 3 {
                message = message.replace(value.expose(), &format!("${{{name}}}"));
            }
        }
        Error::invalid(format!("table {}: {message}", self.table))
    }
}

/// The known name that somebody who wrote `name` may have meant: three letters away at most.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|known| (strsim::levenshtein(name, known), known))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, known)| known)
}

/// The known name that somebody who wrote `name` may have meant, of names that people give: the same in another case, or
/// one of which at least half the letters are there.
pub fn meant<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let mut same = known.clone().into_iter();
    same.find(|known| known.eq_ignore_ascii_case(name))
        .or_else(|| {
            nearest(name, known)
                .filter(|near| strsim::levenshtein(name, near) * 2 <= name.chars().count())
        })
}

/// Milliseconds of a text such as `10 seconds` or `500 milliseconds`; `None` for anything else or a negative one.
pub fn duration_ms(text: &str) -> Option<u64> {
    // Not as days and ms, of which more than 24 days' worth does not fit.
    let interval = parse_interval_month_day_nano(text).ok()?;
    let (days, nanos) = (i64::from(interval.days), interval.nanoseconds);
    if interval.months != 0 || nanos % 1_000_000 != 0 {
        return None;
    }
    u64::try_from(days * 86_400_000 + nanos / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_may_be_as_long_as_a_month() {
        assert_eq!(duration_ms("10 seconds"), Some(10_000));
        assert_eq!(duration_ms("500 milliseconds"), Some(500));
        assert_eq!(duration_ms("1 day 1 second"), Some(86_401_000));
        assert_eq!(duration_ms("720 hours"), Some(30 * 86_400_000));
        assert_eq!(duration_ms("5015301743 ms"), Some(5_015_301_743));
        for wrong in ["1 month", "-1 second", "0.1 milliseconds", "soon"] {
            assert_eq!(duration_ms(wrong), None, "{wrong}");
        }
    }

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
