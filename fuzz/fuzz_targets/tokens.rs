//! A tokens file: whatever it says, its words are in no error.
#![no_main]

use essaim_common::net::tokens::{TokenSource, Tokens};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Tokens::open(TokenSource::Text(text.to_owned())) {
        Ok(tokens) => drop(tokens.bearer(text)),
        Err(error) => {
            let error = error.to_string();
            for token in text.split_whitespace().filter(|word| word.len() >= 40) {
                // The name of a line may be shown, and is its second word.
                assert!(
                    !error.contains(token)
                        || text
                            .lines()
                            .any(|line| line.split_whitespace().nth(1) == Some(token))
                );
            }
        }
    }
});
