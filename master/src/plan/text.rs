//! From a text to its statements, each with its place.

use datafusion::error::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use essaim_common::secret::shown_tokens;
use essaim_common::{Error, Result};
use std::cell::LazyCell;
use std::collections::HashSet;

/// The longest SQL text that is taken, in bytes.
pub const MAX_SQL_BYTES: usize = 1 << 20;
/// The most statements that are taken: each takes many times the memory of its text.
const MAX_STATEMENTS: usize = 10_000;
/// How deep expressions may nest.
const RECURSION_LIMIT: usize = 128;
/// Operators of one statement: `1 + 1 + …` is as deep as it is long, and so are chains of UNION, of CTEs and of types. What
/// walks such a tree calls itself as often, on the stack of [`essaim_common::threads::STACK`].
const MAX_OPERATORS: usize = 5_000;

/// What an error may repeat of a text; found out when there is one.
type Shown<'a> = LazyCell<HashSet<String>, Box<dyn FnOnce() -> HashSet<String> + 'a>>;

/// A statement of a text, or why it is none.
#[derive(Debug)]
pub struct Placed {
    /// Where its first word is, from 1; of one that is none, where that shows, if that is known.
    pub line: u32,
    pub column: u32,
    pub statement: Result<Statement>,
}

/// The statements of a text.
///
/// # Errors
/// A syntax error with its line and column, or a text that is too long.
pub fn parse(sql: &str) -> Result<Vec<Statement>> {
    statements(sql)?
        .into_iter()
        .map(|placed| placed.statement)
        .collect()
}

/// The statements of a text, and among them those that are none: after a syntax error it goes on behind the next
/// semicolon.
///
/// # Errors
/// The text is too long or has too many statements.
pub fn statements(sql: &str) -> Result<Vec<Placed>> {
    if sql.len() > MAX_SQL_BYTES {
        return Err(Error::invalid(format!(
            "the SQL text has {} bytes, at most {MAX_SQL_BYTES} are taken",
            sql.len()
        )));
    }
    let mut tokens = Vec::new();
    let broken_off = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location_into_buf(&mut tokens)
        .err();
    check_operators(&tokens)?;
    let shown: Shown<'_> = LazyCell::new(Box::new(|| shown_tokens(sql)));
    let words: Vec<(Location, String)> = tokens
        .iter()
        .filter_map(|token| match &token.token {
            Token::Word(word) => Some((token.span.start, word.value.to_uppercase())),
            _ => None,
        })
        .collect();
    let mut parser = DFParserBuilder::new(tokens)
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(RECURSION_LIMIT)
        .build()
        .map_err(|error| wrong(error, &shown))?;
    let mut placed = Vec::new();
    loop {
        while parser.parser.consume_token(&Token::SemiColon) {}
        let first = parser.parser.peek_token();
        if first.token == Token::EOF {
            break;
        }
        if placed.len() == MAX_STATEMENTS {
            return Err(Error::invalid(format!(
                "the SQL text has more than {MAX_STATEMENTS} statements: take it apart into several jobs"
            )));
        }
        let statement = parser.parse_statement().and_then(|statement| {
            let next = parser.parser.peek_token();
            match next.token {
                Token::SemiColon | Token::EOF => Ok(statement),
                _ => Err(ParserError::ParserError(format!(
                    "Expected: end of statement, found: {next}{}",
                    next.span.start
                ))
                .into()),
            }
        });
        if statement.is_err() && parser.parser.get_current_token().token != Token::SemiColon {
            while !matches!(
                parser.parser.next_token().token,
                Token::SemiColon | Token::EOF
            ) {}
        }
        let statement = statement.map_err(|error| {
            let end = parser.parser.get_current_token().span.start;
            let inside = |(at, _): &&(Location, String)| {
                *at >= first.span.start && (end == Location::empty() || *at <= end)
            };
            let words: Vec<&str> = words
                .iter()
                .filter(inside)
                .map(|(_, word)| word.as_str())
                .collect();
            let error = wrong(error, &shown);
            match foreign(&words) {
                Some(advice) => error.with_hint(advice),
                None => error,
            }
        });
        let is_cut = broken_off.is_some() && parser.parser.peek_token().token == Token::EOF;
        if is_cut {
            // What is left of it may well be a statement, but not the one that was meant.
            break;
        }
        placed.push(match statement {
            Ok(statement) => Placed {
                line: number(first.span.start.line),
                column: number(first.span.start.column),
                statement: Ok(statement),
            },
            Err(error) => misplaced(first.span.start, error),
        });
    }
    if let Some(error) = broken_off {
        let location = error.location;
        let error = wrong(ParserError::from(error).into(), &shown);
        placed.push(misplaced(location, error));
    }
    Ok(placed)
}

/// Refuses a statement that would take more stack than there is.
fn check_operators(tokens: &[TokenWithSpan]) -> Result<()> {
    for statement in tokens.split(|token| token.token == Token::SemiColon) {
        let operators = statement.iter().filter(|token| deepens(&token.token));
        let operators = operators.count();
        if operators > MAX_OPERATORS {
            let begin = statement
                .iter()
                .find(|token| !matches!(token.token, Token::Whitespace(_)));
            let line = begin.map_or(1, |token| token.span.start.line);
            return Err(Error::invalid(format!(
                "the statement in line {line} has {operators} operators, at most {MAX_OPERATORS} are taken: write x IN (…) in place of many ORs, or put the values into a table and join it"
            )));
        }
    }
    Ok(())
}

/// Whether what stands before and after a token may be one level deeper in the tree.
fn deepens(token: &Token) -> bool {
    match token {
        Token::Word(word) => matches!(
            word.keyword,
            Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::BETWEEN
                | Keyword::COLLATE
                | Keyword::AT
                | Keyword::SELECT
                | Keyword::VALUES
                | Keyword::UNION
                | Keyword::INTERSECT
                | Keyword::EXCEPT
                | Keyword::JOIN
                | Keyword::CASE
        ),
        Token::Comma
        | Token::LParen
        | Token::RParen
        | Token::SemiColon
        | Token::Period
        | Token::Whitespace(_)
        | Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::Placeholder(_)
        | Token::EOF => false,
        _ => true,
    }
}

/// An error, where its message says that it is.
fn misplaced(begin: Location, error: Error) -> Placed {
    let (line, column) =
        place(&error.to_string()).unwrap_or((number(begin.line), number(begin.column)));
    Placed {
        line,
        column,
        statement: Err(error),
    }
}

/// The last "Line: 3, Column: 7" of a message.
fn place(message: &str) -> Option<(u32, u32)> {
    let (_, rest) = message.rsplit_once("Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let column = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((line.parse().ok()?, column.parse().ok()?))
}

/// What to write for words of other systems that are no SQL here.
fn foreign(words: &[&str]) -> Option<&'static str> {
    let has = |pair: [&str; 2]| words.windows(2).any(|two| two == pair);
    if has(["WATERMARK", "FOR"]) {
        return Some(
            "the event time and its delay are options: OPTIONS (event_time 'ts', watermark_delay '10 seconds')",
        );
    }
    if has(["TUMBLE", "TABLE"]) || has(["HOP", "TABLE"]) || has(["CUMULATE", "TABLE"]) {
        return Some(
            "windows stand in GROUP BY: GROUP BY window(ts, INTERVAL '1 minute') and SELECT window_start, window_end",
        );
    }
    if has(["LATERAL", "VIEW"]) {
        return Some("SELECT unnest(list) takes a list apart");
    }
    None
}

fn number(place: u64) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

fn wrong(error: DataFusionError, shown: &Shown<'_>) -> Error {
    Error::invalid(match error.find_root() {
        DataFusionError::SQL(parser, _) => match parser.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => {
                format!("syntax error: {}", without_secret(text, shown))
            }
            ParserError::RecursionLimitExceeded => format!(
                "an expression is nested more than {RECURSION_LIMIT} deep: take it apart with a view"
            ),
        },
        other => other.strip_backtrace(),
    })
}

/// The parser's words without the token that it found, unless that may be seen: an error stands in the job, for all who
/// may look at jobs.
fn without_secret(text: &str, shown: &Shown<'_>) -> String {
    const FOUND: &str = "found: ";
    let found = text.rsplit_once(FOUND).map(|(before, rest)| {
        let end = rest.rfind(" at Line: ").unwrap_or(rest.len());
        (before, rest.split_at(end))
    });
    match found {
        Some((before, (token, place))) if token != "EOF" && !shown.contains(token) => {
            format!("{before}{FOUND}***{place}")
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;

    fn places(sql: &str) -> Vec<(u32, u32, bool)> {
        let placed = statements(sql).unwrap();
        let places = placed.iter();
        places
            .map(|placed| (placed.line, placed.column, placed.statement.is_ok()))
            .collect()
    }

    #[test]
    fn a_syntax_error_does_not_hide_the_statements_after_it() {
        assert_eq!(
            places("SELECT 1;\n  SELEC 1;\n-- c\nSELECT 2 SELECT; ;\n\nSELECT 3"),
            [(1, 1, true), (2, 3, false), (4, 10, false), (6, 1, true)]
        );
    }

    #[test]
    fn a_text_that_breaks_off_is_one_error() {
        assert_eq!(
            places("SELECT 1;\nSELECT 'x;\nSELECT 2;"),
            [(1, 1, true), (2, 8, false)]
        );
        assert_eq!(places("SELECT 1; 'x"), [(1, 1, true), (1, 11, false)]);
    }

    #[test]
    fn a_syntax_error_does_not_repeat_a_secret() {
        let error = |sql| parse(sql).unwrap_err().to_string();
        let option = "CREATE EXTERNAL TABLE t STORED AS HTTP LOCATION 'x' OPTIONS ('body' = 'abc')";
        assert!(error(option).contains("found: ***"), "{}", error(option));
        let next = error("SELECT 'a' FROM t WHERE token = 'x' 'abc'");
        assert!(!next.contains("abc"), "{next}");
        let word = error("SELECT 1 FROM t abc def");
        assert!(word.contains("found: def"), "{word}");
    }

    #[test]
    fn statements_are_counted_before_they_fill_the_memory() {
        assert_eq!(
            statements(&"SELECT 1;".repeat(10_000)).unwrap().len(),
            10_000
        );
        let error = statements(&"SELEC 1;".repeat(10_001))
            .unwrap_err()
            .to_string();
        assert!(error.contains("more than 10000 statements"), "{error}");
    }

    #[test]
    fn a_text_is_all_statements_or_its_first_error() {
        assert_eq!(parse("SELECT 1;; SELECT 2;").unwrap().len(), 2);
        assert_eq!(parse(" -- nothing\n").unwrap().len(), 0);
        let error = parse("SELECT 1; SELECT 2 2").unwrap_err().to_string();
        assert!(error.contains("end of statement"), "{error}");
        assert!(error.contains("Line: 1, Column: 20"), "{error}");
    }
}
