//! The framing of server-sent events (WHATWG HTML, section 9.2.6): from bytes to events.
//!
//! Written here because what is on the shelf loses a `retry:` that stands alone, as servers send it, and keeps a line or
//! an event of any size.

use std::sync::Arc;
use std::time::Duration;

/// The largest event, in bytes. An entry of the journal holds it with some room to spare.
const MAX_EVENT: usize = 3 << 20;
/// The longest id and the longest type of an event, in bytes: they are kept with each event that follows, or asked for.
const MAX_NAME: usize = 1 << 10;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its type; `message` if the server names none.
    pub event: Arc<str>,
    /// The last id that the server has named, in this event or before; empty if none.
    pub id: Arc<str>,
    /// `None` if it is larger than [`MAX_EVENT`], or its id or type than [`MAX_NAME`].
    pub data: Option<String>,
}

/// Takes the bytes of one connection, however they are cut.
#[derive(Debug)]
pub struct Frames {
    /// A line that has not ended yet.
    line: Vec<u8>,
    /// The last line ended in CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The first line may begin with a byte order mark.
    begun: bool,
    event: Arc<str>,
    data: String,
    has_data: bool,
    too_large: bool,
    /// As named by the fields so far; it counts from the end of their event on.
    id: Arc<str>,
    /// The type of an event that names none.
    message: Arc<str>,
    retry: Option<Duration>,
}

impl Frames {
    /// The frames of a new connection, after an event with this id.
    pub fn after(id: &str) -> Self {
        Self {
            line: Vec::new(),
            after_cr: false,
            begun: false,
            event: Arc::default(),
            data: String::new(),
            has_data: false,
            too_large: false,
            id: Arc::from(id),
            message: Arc::from("message"),
            retry: None,
        }
    }

    /// Takes more bytes and returns the events that end in them.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.extend(bytes);
                break;
            };
            self.after_cr = bytes[end] == b'\r';
            self.extend(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            events.extend(self.line(&line));
        }
        events
    }

    /// How long to wait before the next connection, if the server has said so since the last call.
    pub fn retry(&mut self) -> Option<Duration> {
        self.retry.take()
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.line.len() + self.data.len() + bytes.len() > MAX_EVENT {
            self.too_large = true;
            // The rest of the line means nothing any more, whatever it is.
            self.line.clear();
            self.line.push(b':');
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    fn line(&mut self, line: &[u8]) -> Option<Event> {
        let line = match self.begun {
            true => line,
            false => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line),
        };
        self.begun = true;
        if line.is_empty() {
            return self.dispatch();
        }
        let text = String::from_utf8_lossy(line);
        // A line that begins with a colon is a comment: its field has no name.
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" | "id" if value.len() > MAX_NAME => self.too_large = true,
            "event" => self.event = Arc::from(value),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') && *self.id != *value => self.id = Arc::from(value),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis);
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let event = std::mem::take(&mut self.event);
        let data = std::mem::take(&mut self.data);
        let too_large = std::mem::take(&mut self.too_large);
        let has_data = std::mem::take(&mut self.has_data);
        if !has_data && !too_large {
            return None;
        }
        Some(Event {
            event: match event.is_empty() {
                true => Arc::clone(&self.message),
                false => event,
            },
            id: Arc::clone(&self.id),
            data: (!too_large).then_some(data),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: &str, id: &str, data: &str) -> Event {
        Event {
            event: Arc::from(event),
            id: Arc::from(id),
            data: Some(data.to_owned()),
        }
    }

    /// The events of a text, the same however it is cut.
    fn events(text: &str) -> Vec<Event> {
        let whole = Frames::after("").push(text.as_bytes());
        for size in 1..=7 {
            let mut frames = Frames::after("");
            let pieces = text.as_bytes().chunks(size);
            let cut: Vec<Event> = pieces.flat_map(|piece| frames.push(piece)).collect();
            assert_eq!(cut, whole, "cut into pieces of {size}");
        }
        whole
    }

    #[test]
    fn lines_end_in_whatever_way() {
        let text = "\u{feff}event: a\r\ndata: 1\r\n\r\nid: 7\rdata:2\r\rdata\ndata: é\n\n";
        let found = [
            event("a", "", "1"),
            event("message", "7", "2"),
            event("message", "7", "\né"),
        ];
        assert_eq!(events(text), found);
    }

    #[test]
    fn what_is_no_event_is_passed_over() {
        let text = ":thump\n\nevent: x\n\nid: 3\n\nother: 1\ndata:  two blanks\n\ndata: not ended";
        assert_eq!(events(text), [event("message", "3", " two blanks")]);
    }

    #[test]
    fn a_retry_counts_though_it_stands_alone() {
        let mut frames = Frames::after("");
        assert!(frames.push(b"retry: 250\n\nretry: soon\n\n").is_empty());
        assert_eq!(frames.retry(), Some(Duration::from_millis(250)));
        assert_eq!(frames.retry(), None);
    }

    #[test]
    fn an_id_counts_from_the_connection_before() {
        let mut frames = Frames::after("9");
        assert_eq!(frames.push(b"data: x\n\n"), [event("message", "9", "x")]);
        assert_eq!(frames.push(b"id\ndata: y\n\n"), [event("message", "", "y")]);
    }

    #[test]
    fn an_id_is_kept_once_and_no_longer_than_1_kib() {
        let mut frames = Frames::after("7");
        let found = frames.push(format!("id: {}\ndata: x\n\n", "i".repeat(1025)).as_bytes());
        let big = Event {
            data: None,
            ..event("message", "7", "")
        };
        assert_eq!(found, std::slice::from_ref(&big));
        let found = frames.push(format!("event: {}\ndata: x\n\n", "e".repeat(1025)).as_bytes());
        assert_eq!(found, [big]);
        let id = "i".repeat(1024);
        let text = format!("id: {id}\n{}", "data\n\n".repeat(1000));
        let found = frames.push(text.as_bytes());
        assert_eq!(found.len(), 1000);
        assert_eq!(found[999], event("message", &id, ""));
        assert!(
            found
                .iter()
                .all(|event| Arc::ptr_eq(&event.id, &found[0].id))
        );
        assert!(
            found
                .iter()
                .all(|event| Arc::ptr_eq(&event.event, &found[0].event))
        );
    }

    #[test]
    fn an_event_that_is_too_large_is_told_of_and_not_kept() {
        let mut frames = Frames::after("");
        frames.push(b"event: big\nid: 4\ndata: ");
        for _ in 0..5 {
            assert!(frames.push(&[b'x'; 1 << 20]).is_empty());
            assert!(frames.line.len() <= MAX_EVENT);
        }
        let found = frames.push(b"\ndata: more\n\ndata: next\n\n");
        let big = Event {
            data: None,
            ..event("big", "4", "")
        };
        assert_eq!(found, [big, event("message", "4", "next")]);
    }
}
