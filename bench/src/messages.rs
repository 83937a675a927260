//! The JSON messages of the Kafka bench: 200 bytes each, the same ones every time.

use std::fmt::Write;

/// Bytes of each message.
pub const MESSAGE_BYTES: usize = 200;
/// Different values of the field `key`.
pub const KEYS: u64 = 1000;

/// The columns of a message as SQL declares them.
pub const COLUMNS: &str = r#"id BIGINT, "key" VARCHAR, value DOUBLE, user_name VARCHAR, country VARCHAR,
     created_at TIMESTAMP, ok BOOLEAN, content VARCHAR"#;

/// Writes message `number` into `buffer`, in place of what it held.
pub fn write_message(number: u64, buffer: &mut String) {
    const WORDS: &str =
        "the quick brown fox jumps over the lazy dog and runs on through the long grass ";
    let random = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24;
    buffer.clear();
    // Writing to a String cannot fail.
    let _ = write!(
        buffer,
        r#"{{"id":{number},"key":"k{:03}","value":{}.{:02},"user_name":"user{:06}","country":"{}","created_at":"2026-01-{:02}T{:02}:{:02}:{:02}Z","ok":{},"content":""#,
        random % KEYS,
        random / 1000 % 10_000,
        random % 100,
        random % 1_000_000,
        ["FR", "DE", "JP", "BR", "US"][(random % 5) as usize],
        1 + random % 28,
        random % 24,
        random / 24 % 60,
        random / 1440 % 60,
        random.is_multiple_of(2),
    );
    let room = MESSAGE_BYTES - 2 - buffer.len();
    buffer.push_str(&WORDS[..room]);
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
        }
    }
}
