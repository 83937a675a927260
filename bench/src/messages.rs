//! The JSON messages of the benches: 200 bytes each, the same ones every time.

use std::fmt::Write;

/// Bytes of each message.
pub const MESSAGE_BYTES: usize = 200;
/// Different values of the field `key`.
pub const KEYS: u64 = 1000;

/// The columns of a message as SQL declares them.
pub const COLUMNS: &str = r#"id BIGINT, "key" VARCHAR, value DOUBLE, user_name VARCHAR, country VARCHAR,
     created_at TIMESTAMP, ok BOOLEAN, content VARCHAR"#;

/// The same of a message of a stream, whose time is `at`.
pub const EVENT_COLUMNS: &str = r#"id BIGINT, "key" VARCHAR, value DOUBLE, user_name VARCHAR, country VARCHAR,
     at TIMESTAMP, ok BOOLEAN, content VARCHAR"#;

const WORDS: &str =
    "the quick brown fox jumps over the lazy dog and runs on through the long grass ";

/// What is random in message `number`.
fn random(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24
}

/// The number in the key of message `number`: `k042` for 42.
pub fn key_of(number: u64) -> u64 {
    random(number) % KEYS
}

/// Writes message `number` into `buffer`, in place of what it held.
pub fn write_message(number: u64, buffer: &mut String) {
    let random = random(number);
    write_head(number, buffer);
    // Writing to a String cannot fail.
    let _ = write!(
        buffer,
        r#""created_at":"2026-01-{:02}T{:02}:{:02}:{:02}Z","#,
        1 + random % 28,
        random % 24,
        random / 24 % 60,
        random / 1440 % 60,
    );
    write_tail(number, buffer);
}

/// Writes the message of an event at `at_ms` (ms since 1970-01-01 UTC) into `buffer`, in place of what it held.
pub fn write_event(number: u64, at_ms: i64, buffer: &mut String) {
    write_head(number, buffer);
    let _ = write!(buffer, r#""at":{at_ms},"#);
    write_tail(number, buffer);
}

fn write_head(number: u64, buffer: &mut String) {
    let random = random(number);
    buffer.clear();
    let _ = write!(
        buffer,
        r#"{{"id":{number},"key":"k{:03}","value":{}.{:02},"user_name":"user{:06}","country":"{}","#,
        random % KEYS,
        random / 1000 % 10_000,
        random % 100,
        random % 1_000_000,
        ["FR", "DE", "JP", "BR", "US"][(random % 5) as usize],
    );
}

fn write_tail(number: u64, buffer: &mut String) {
    let ok = random(number).is_multiple_of(2);
    let _ = write!(buffer, r#""ok":{ok},"content":""#);
    let mut room = MESSAGE_BYTES - 2 - buffer.len();
    while room > 0 {
        let part = room.min(WORDS.len());
        buffer.push_str(&WORDS[..part]);
        room -= part;
    }
    buffer.push_str("\"}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_json_of_200_bytes() {
        let mut buffer = String::new();
        for number in [0, 1, 99, 4_999_999] {
            write_message(number, &mut buffer);
            assert_eq!(buffer.len(), MESSAGE_BYTES, "{buffer}");
            let value: serde_json::Value = serde_json::from_str(&buffer).unwrap();
            assert_eq!(value["id"], number);
            write_event(number, 1_767_225_600_000, &mut buffer);
            assert_eq!(buffer.len(), MESSAGE_BYTES, "{buffer}");
            let value: serde_json::Value = serde_json::from_str(&buffer).unwrap();
            assert_eq!(value["key"], format!("k{:03}", key_of(number)));
        }
    }
}
