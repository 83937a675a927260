//! SQL as people may see it. Whoever may look at jobs need not be one who may know what they log in with.

use super::urls::{Extent, is_variable, redact_urls};
use super::{MASK, names_a_secret};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Whitespace};

/// The options that hold no secret. What is not among them is not shown, so that one who adds an option to a connector
/// and forgets it here hides too much and not too little.
const SHOWN: [&str; 61] = [
    "clean_source",
    "collection",
    "compression",
    "cursor_param",
    "cursor_path",
    "dead_letter_location",
    "dead_letter_table",
    "dead_letter_topic",
    "delimiter",
    "ending_offsets",
    "ending_timestamp",
    "event_time",
    "events",
    "fail_on_data_loss",
    "first_page",
    "format",
    "has_header",
    "heartbeat_timeout",
    "idle_timeout",
    "ignore_corrupt_files",
    "ignore_missing_files",
    "interval",
    "isolation_level",
    "json_path",
    "key",
    "late_rows",
    "lower_bound",
    "max_file_age",
    "max_files_per_trigger",
    "max_offsets_per_trigger",
    "max_pages",
    "max_response_bytes",
    "method",
    "mode",
    "monitor_interval",
    "multi_line",
    "num_partitions",
    "num_rows",
    "number_of_rows",
    "on_error",
    "page_param",
    "paging",
    "parquet.compression",
    "partition_column",
    "recursive_file_lookup",
    "request_timeout",
    "requests_per_second",
    "retries",
    "rows_per_second",
    "sample_size",
    "seed",
    "single_file",
    "source_archive_dir",
    "start_time",
    "starting_offsets",
    "starting_timestamp",
    "table",
    "timestamp_unit",
    "truncate",
    "upper_bound",
    "watermark_delay",
];

/// Words after which a column's name no longer speaks for the literals that follow.
const ENDS_A_CONDITION: [&str; 10] = [
    "AND", "FROM", "GROUP", "JOIN", "ON", "OPTIONS", "OR", "ORDER", "SELECT", "WHERE",
];

/// A token and how it is written.
struct Piece<'a> {
    token: Token,
    text: &'a str,
}

/// SQL without its secrets. Hidden are the values of all options but those that are known to hold none, passwords and
/// keys within URLs, literals and comments that speak of secrets, and literals that are compared with a column that is
/// called like one. Of a text whose quotes do not match nothing is shown: what is a literal in it is anybody's guess.
pub fn redact_sql(sql: &str) -> String {
    let Some(pieces) = pieces(sql) else {
        return MASK.to_owned();
    };
    let mut shown = String::with_capacity(sql.len());
    let mut rest = pieces.as_slice();
    // The last word that was no blank, in capitals, and whether a column that is called like a secret came before.
    let mut last = String::new();
    let mut of_secret = false;
    while let [piece, after @ ..] = rest {
        rest = after;
        match &piece.token {
            Token::Whitespace(_) => {
                shown.push_str(&blank(piece));
                continue;
            }
            Token::LParen if last == "OPTIONS" => {
                shown.push('(');
                rest = options(&mut shown, after);
            }
            Token::Word(word) => {
                shown.push_str(&redact_urls(piece.text, Extent::Word));
                last = word.value.to_ascii_uppercase();
                of_secret = match ENDS_A_CONDITION.contains(&last.as_str()) {
                    true => false,
                    false => of_secret || names_a_secret(&word.value),
                };
                continue;
            }
            Token::SemiColon => {
                shown.push(';');
                of_secret = false;
            }
            Token::Number(..) if of_secret => shown.push_str(MASK),
            token if is_text(token) => match of_secret {
                true => shown.push_str("'***'"),
                false => shown.push_str(&literal(piece.text, matches!(&*last, "LOCATION" | "TO"))),
            },
            _ => shown.push_str(piece.text),
        }
        last.clear();
    }
    shown
}

/// The words and signs of a text as the parser names them in its errors: what an error may repeat of it.
pub fn shown_tokens(sql: &str) -> std::collections::HashSet<String> {
    let shown = redact_sql(sql);
    let mut tokens = Vec::new();
    // What comes before the place where it breaks off is as good as shown.
    let _ = Tokenizer::new(&GenericDialect {}, &shown).tokenize_with_location_into_buf(&mut tokens);
    tokens.iter().map(|token| token.token.to_string()).collect()
}

/// The text cut into its tokens, blanks among them; `None` if quotes or comments do not end, or if a literal touches a
/// word, which is how it looks when a quote is missing before.
fn pieces(sql: &str) -> Option<Vec<Piece<'_>>> {
    let mut tokens = Vec::new();
    Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location_into_buf(&mut tokens)
        .ok()?;
    let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(tokens.len());
    let mut chars = sql.char_indices();
    let (mut line, mut column, mut begin) = (1, 1, 0);
    let mut starts = tokens.iter().map(|token| token.span.start).skip(1);
    let mut cut = |until: Option<_>| {
        let from = begin;
        loop {
            if until.is_some_and(|until| until == (line, column)) {
                break;
            }
            let Some((at, c)) = chars.next() else {
                begin = sql.len();
                return (until.is_none()).then_some(&sql[from..]);
            };
            begin = at + c.len_utf8();
            (line, column) = match c {
                '\n' => (line + 1, 1),
                _ => (line, column + 1),
            };
        }
        Some(&sql[from..begin])
    };
    let texts: Vec<&str> = (0..tokens.len())
        .map(|_| cut(starts.next().map(|start| (start.line, start.column))))
        .collect::<Option<_>>()?;
    for (token, text) in tokens.into_iter().zip(texts) {
        pieces.push(Piece {
            token: token.token,
            text,
        });
    }
    let touch = pieces.windows(2).any(|pair| {
        let [a, b] = [&pair[0].token, &pair[1].token];
        (is_text(a) && (is_text(b) || is_bare(b))) || (is_bare(a) && is_text(b))
    });
    (!touch).then_some(pieces)
}

fn is_bare(token: &Token) -> bool {
    matches!(token, Token::Word(_) | Token::Number(..))
}

/// A literal of any kind that holds text.
fn is_text(token: &Token) -> bool {
    content(token).is_some()
        || matches!(
            token,
            Token::DollarQuotedString(_)
                | Token::NationalStringLiteral(_)
                | Token::UnicodeStringLiteral(_)
                | Token::HexStringLiteral(_)
                | Token::SingleQuotedByteStringLiteral(_)
                | Token::DoubleQuotedByteStringLiteral(_)
                | Token::SingleQuotedRawStringLiteral(_)
                | Token::DoubleQuotedRawStringLiteral(_)
                | Token::TripleSingleQuotedString(_)
                | Token::TripleDoubleQuotedString(_)
                | Token::TripleSingleQuotedByteStringLiteral(_)
                | Token::TripleDoubleQuotedByteStringLiteral(_)
                | Token::TripleSingleQuotedRawStringLiteral(_)
                | Token::TripleDoubleQuotedRawStringLiteral(_)
        )
}

/// The text of a literal that an option may have.
fn content(token: &Token) -> Option<&str> {
    match token {
        Token::SingleQuotedString(text)
        | Token::DoubleQuotedString(text)
        | Token::EscapedStringLiteral(text) => Some(text),
        _ => None,
    }
}

/// A blank as it is, a comment if nothing in it looks like a secret or like SQL that was put aside.
fn blank(piece: &Piece<'_>) -> String {
    let shows = !piece.text.contains(['\'', '"', '=', '@'])
        && !piece.text.contains("://")
        && !names_a_secret(piece.text)
        && !piece.text.to_ascii_lowercase().contains("key");
    match &piece.token {
        Token::Whitespace(Whitespace::MultiLineComment(_)) if !shows => "/* *** */".to_owned(),
        Token::Whitespace(Whitespace::SingleLineComment { .. }) if !shows => {
            let end = match piece.text.ends_with('\n') {
                true => "\n",
                false => "",
            };
            format!("-- {MASK}{end}")
        }
        _ => piece.text.to_owned(),
    }
}

/// A literal as it is written, quotes and all.
fn literal(text: &str, is_place: bool) -> String {
    if text.contains("://") {
        let body = text.trim_end_matches(['\'', '"', '$']);
        return redact_urls(body, Extent::Text) + &text[body.len()..];
    }
    // A place that lacks its slashes is none, and may still hold a password.
    if names_a_secret(text) || (is_place && text.contains('@')) {
        return "'***'".to_owned();
    }
    text.to_owned()
}

/// Appends a list of options up to its closing bracket, and returns what follows it.
fn options<'p, 'a>(shown: &mut String, pieces: &'p [Piece<'a>]) -> &'p [Piece<'a>] {
    let mut list = String::new();
    if let Some(rest) = listed(&mut list, pieces) {
        shown.push_str(&list);
        return rest;
    }
    // No list of names and values: what in it is which cannot be said.
    shown.push_str(MASK);
    let mut depth = 1_usize;
    for (at, piece) in pieces.iter().enumerate() {
        match piece.token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            shown.push(')');
            return &pieces[at + 1..];
        }
    }
    &[]
}

/// The same, for a list that is written as one is: `name value, …)`.
fn listed<'p, 'a>(shown: &mut String, pieces: &'p [Piece<'a>]) -> Option<&'p [Piece<'a>]> {
    let mut rest = pieces;
    let mut next = |shown: &mut String| -> Option<&'p Piece<'a>> {
        loop {
            let (piece, after) = rest.split_first()?;
            rest = after;
            if !matches!(piece.token, Token::Whitespace(_)) {
                return Some(piece);
            }
            shown.push_str(&blank(piece));
        }
    };
    let mut piece = next(shown)?;
    loop {
        let mut name = String::new();
        loop {
            let (part, is_word) = match &piece.token {
                Token::Word(word) => (word.value.as_str(), true),
                token => (content(token)?, false),
            };
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
            match part.chars().all(plain) {
                true => shown.push_str(piece.text),
                false => shown.push_str("'***'"),
            }
            name.push_str(&part.to_ascii_lowercase());
            piece = next(shown)?;
            if !is_word || piece.token != Token::Period {
                break;
            }
            shown.push('.');
            name.push('.');
            piece = next(shown)?;
        }
        let value = match &piece.token {
            Token::Word(word) => word.value.as_str(),
            Token::Number(number, _) => number,
            token => content(token)?,
        };
        let name = name.strip_prefix("format.").unwrap_or(&name);
        match SHOWN.contains(&name) {
            _ if is_reference(value) => shown.push_str(piece.text),
            true => shown.push_str(&literal(piece.text, true)),
            false => shown.push_str("'***'"),
        }
        piece = next(shown)?;
        let comma = piece.token == Token::Comma;
        if comma {
            shown.push(',');
            piece = next(shown)?;
        }
        if piece.token == Token::RParen {
            shown.push(')');
            return Some(rest);
        }
        if !comma {
            return None;
        }
    }
}

/// Nothing, or what names a secret and is none, as in `Bearer ${TOKEN}`.
fn is_reference(value: &str) -> bool {
    let value = match value.split_once(' ') {
        Some((scheme, rest))
            if ["bearer", "basic", "token"].contains(&&*scheme.to_ascii_lowercase()) =>
        {
            rest
        }
        _ => value,
    };
    value.is_empty() || value == MASK || is_variable(value)
}

#[cfg(test)]
mod tests;
