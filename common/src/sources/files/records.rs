//! Where a record of a text file begins and ends: a line, a record of CSV with its quotes, a JSON value.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The longest record, in bytes.
const MAX_RECORD_BYTES: usize = 64 << 20;
/// Some editors begin a text in UTF-8 with it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What ends a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Cut {
    /// The end of a line. Blank lines are no records.
    Lines,
    /// The end of a line outside of quotes. Empty lines are no records.
    Csv {
        delimiter: u8,
        quote: u8,
        escape: Option<u8>,
    },
    /// The end of a JSON value; those of an outermost array are records each.
    Values,
}

/// Cuts bytes, as they come, into records.
#[derive(Debug)]
pub(super) struct Splitter {
    cut: Cut,
    buffer: Vec<u8>,
    /// Where the record in hand begins.
    start: usize,
    /// The next byte to look at.
    at: usize,
    /// The position of the buffer's first byte.
    offset: u64,
    /// No bytes follow.
    ended: bool,
    state: State,
    /// Within the outermost array of [`Cut::Values`].
    in_array: bool,
}

/// Where in a record the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before it, or of CSV before a field.
    Before,
    /// In a field without quotes, or a value that is neither object nor array.
    Plain,
    /// In quotes.
    Quoted,
    /// Behind a quote that ends a field, unless another one follows.
    Quote,
    /// Behind the sign that takes the next one's meaning.
    Escaped,
    /// In an object or array, so many levels deep.
    Deep(u32),
    /// In a text within one.
    Text(u32),
    /// Behind a backslash in such a text.
    TextEscaped(u32),
}

impl Splitter {
    /// Begins at byte `offset` of a file, which is the first of a record.
    pub fn new(cut: Cut, offset: u64) -> Self {
        Self {
            cut,
            buffer: Vec::new(),
            start: 0,
            at: 0,
            offset,
            ended: false,
            state: State::Before,
            in_array: false,
        }
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// A record that is longer than any may be.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.drain(..self.start);
        self.offset += self.start as u64;
        self.at -= self.start;
        self.start = 0;
        if self.buffer.len() + bytes.len() > MAX_RECORD_BYTES.max(bytes.len()) {
            return Err(Error::data(format!(
                "the record at byte {} is longer than {MAX_RECORD_BYTES} bytes",
                self.offset
            )));
        }
        self.buffer.extend_from_slice(bytes);
        if self.offset == 0 && self.at == 0 && self.buffer.starts_with(BYTE_ORDER_MARK) {
            self.start = BYTE_ORDER_MARK.len();
            self.at = self.start;
        }
        Ok(())
    }

    /// Says that no bytes follow.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The next record, if it is here whole.
    pub fn next(&mut self) -> Option<Range<usize>> {
        match self.cut {
            Cut::Lines => self.line(),
            Cut::Csv {
                delimiter,
                quote,
                escape,
            } => self.csv(delimiter, quote, escape),
            Cut::Values => self.value(),
        }
    }

    /// The bytes of a record that [`Self::next`] has just found.
    pub fn record(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// The position behind the last record and what ends it.
    pub fn position(&self) -> u64 {
        self.offset + self.start as u64
    }

    /// Whether an array was not closed where the file ends.
    pub fn is_open(&self) -> bool {
        self.in_array
    }

    /// The record up to `end`; the next one begins at `next`.
    fn take(&mut self, end: usize, next: usize) -> Range<usize> {
        let record = self.start..end;
        self.start = next;
        self.at = next;
        self.state = State::Before;
        record
    }

    /// What is left where the file ends.
    fn rest(&mut self) -> Option<Range<usize>> {
        let end = self.buffer.len();
        (self.ended && self.start < end).then(|| self.take(end, end))
    }

    fn line(&mut self) -> Option<Range<usize>> {
        loop {
            let found = self.buffer[self.at..]
                .iter()
                .position(|byte| *byte == b'\n');
            let record = match found {
                Some(length) => {
                    let end = self.at + length;
                    self.take(end, end + 1)
                }
                None => {
                    self.at = self.buffer.len();
                    self.rest()?
                }
            };
            if !self.buffer[record.clone()].trim_ascii().is_empty() {
                return Some(record);
            }
        }
    }

    /// The automaton of RFC 4180, as lenient as the decoder behind it: a quote within a plain field is a quote.
    fn csv(&mut self, delimiter: u8, quote: u8, escape: Option<u8>) -> Option<Range<usize>> {
        loop {
            let Some(byte) = self.buffer.get(self.at).copied() else {
                return self.rest();
            };
            let ends_line = matches!(byte, b'\n' | b'\r');
            self.state = match self.state {
                State::Quoted if Some(byte) == escape => State::Escaped,
                State::Quoted if byte == quote => State::Quote,
                State::Quoted | State::Escaped => State::Quoted,
                State::Before | State::Quote if byte == quote => State::Quoted,
                _ if ends_line => {
                    let record = self.take(self.at, self.at + 1);
                    if record.is_empty() {
                        continue;
                    }
                    return Some(record);
                }
                _ if byte == delimiter => State::Before,
                _ => State::Plain,
            };
            self.at += 1;
        }
    }

    fn value(&mut self) -> Option<Range<usize>> {
        loop {
            let Some(byte) = self.buffer.get(self.at).copied() else {
                // Half a value is a bad record; blanks are none.
                return match self.state {
                    State::Before => None,
                    _ => self.rest(),
                };
            };
            self.at += 1;
            self.state = match self.state {
                State::Before => {
                    let next = self.between(byte);
                    if next == State::Before {
                        self.start = self.at;
                    }
                    next
                }
                State::Deep(depth) => match byte {
                    b'"' => State::Text(depth),
                    b'{' | b'[' => State::Deep(depth + 1),
                    b'}' | b']' if depth > 1 => State::Deep(depth - 1),
                    b'}' | b']' => return Some(self.take(self.at, self.at)),
                    _ => State::Deep(depth),
                },
                State::Text(depth) => match byte {
                    b'"' => State::Deep(depth),
                    b'\\' => State::TextEscaped(depth),
                    _ => State::Text(depth),
                },
                State::TextEscaped(depth) => State::Text(depth),
                _ => match byte {
                    b',' | b']' | b'\n' | b'{' | b'[' => {
                        let end = self.at - 1;
                        return Some(self.take(end, end));
                    }
                    _ => State::Plain,
                },
            };
        }
    }

    /// What begins with a byte between two values.
    fn between(&mut self, byte: u8) -> State {
        match byte {
            byte if byte.is_ascii_whitespace() => State::Before,
            b'[' if !self.in_array => {
                self.in_array = true;
                State::Before
            }
            b']' if self.in_array => {
                self.in_array = false;
                State::Before
            }
            b',' if self.in_array => State::Before,
            b'{' | b'[' => State::Deep(1),
            _ => State::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts `text`, fed in pieces of every size: what comes out must not depend on it.
    fn cut(cut: Cut, text: &str) -> Vec<String> {
        let all = |size: usize| -> Vec<String> {
            let mut splitter = Splitter::new(cut, 0);
            let mut found = Vec::new();
            let mut take = |splitter: &mut Splitter| {
                while let Some(range) = splitter.next() {
                    let record = splitter.record(range).to_vec();
                    found.push(String::from_utf8(record).unwrap());
                }
            };
            for piece in text.as_bytes().chunks(size) {
                splitter.feed(piece).unwrap();
                take(&mut splitter);
            }
            splitter.end();
            take(&mut splitter);
            assert_eq!(splitter.position(), text.len() as u64);
            found
        };
        let whole = all(text.len());
        for size in 3..text.len() {
            assert_eq!(all(size), whole, "in pieces of {size} bytes");
        }
        whole
    }

    const CSV: Cut = Cut::Csv {
        delimiter: b',',
        quote: b'"',
        escape: None,
    };

    #[test]
    fn lines_end_where_they_end_and_blank_ones_are_no_records() {
        let found = cut(
            Cut::Lines,
            "\u{feff}{\"a\":1}\r\n\n  \n{\"a\":2}\n{\"a\":3}",
        );
        assert_eq!(found, ["{\"a\":1}\r", "{\"a\":2}", "{\"a\":3}"]);
    }

    #[test]
    fn a_line_break_within_quotes_ends_no_record_of_csv() {
        let found = cut(
            CSV,
            "a,\"b\nc\"\r\n\n\"d \"\"e\"\"\n\",f\ng\"h,i\n\"j\",\"k\"",
        );
        assert_eq!(
            found,
            ["a,\"b\nc\"", "\"d \"\"e\"\"\n\",f", "g\"h,i", "\"j\",\"k\""]
        );
        let escaped = Cut::Csv {
            delimiter: b';',
            quote: b'\'',
            escape: Some(b'\\'),
        };
        assert_eq!(cut(escaped, "'a\\'\n';b\nc;d\n"), ["'a\\'\n';b", "c;d"]);
    }

    #[test]
    fn an_array_is_its_values_and_an_object_is_itself() {
        let array = "[\n {\"a\": [1, {\"b\": \"]}\\\"\"}]},\n {\"a\": []} \n]\n";
        assert_eq!(
            cut(Cut::Values, array),
            ["{\"a\": [1, {\"b\": \"]}\\\"\"}]}", "{\"a\": []}"]
        );
        assert_eq!(cut(Cut::Values, "{\n\"a\":\n1}\n"), ["{\n\"a\":\n1}"]);
        assert_eq!(cut(Cut::Values, "[1, null, {}]"), ["1", "null", "{}"]);
        assert_eq!(cut(Cut::Values, "  \n"), Vec::<String>::new());
    }

    #[test]
    fn half_a_document_is_a_record_that_will_not_decode() {
        assert_eq!(
            cut(Cut::Values, "[{\"a\":1},{\"a\""),
            ["{\"a\":1}", "{\"a\""]
        );
        let mut splitter = Splitter::new(Cut::Values, 0);
        splitter.feed(b"[{\"a\":1},").unwrap();
        splitter.end();
        assert!(splitter.next().is_some() && splitter.next().is_none() && splitter.is_open());
    }

    #[test]
    fn a_position_is_where_the_next_record_begins() {
        let text = b"a,1\nb,2\nc,3\n";
        let mut splitter = Splitter::new(CSV, 0);
        splitter.feed(text).unwrap();
        splitter.next();
        splitter.next();
        let mut rest = Splitter::new(CSV, splitter.position());
        rest.feed(&text[8..]).unwrap();
        let record = rest.next().unwrap();
        assert_eq!(rest.record(record), b"c,3");
        assert_eq!(rest.position(), 12);
    }
}
