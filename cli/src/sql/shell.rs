//! The shell: a prompt with history and completion, where Ctrl-C ends a query and not the session.

use super::session::{Flow, Session};
use crate::client::{self, Failure};
use anyhow::Result;
use essaim_common::secret::redact_sql;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use std::path::PathBuf;

const PROMPT: &str = "essaim> ";
const MORE: &str = "   ...> ";
const HISTORY_LINES: usize = 10_000;

/// Words that Tab completes.
const KEYWORDS: &[&str] = &[
    "ALL",
    "AND",
    "AS",
    "ASC",
    "AVG",
    "BETWEEN",
    "BIGINT",
    "BOOLEAN",
    "BY",
    "CASE",
    "CAST",
    "COPY",
    "COUNT",
    "CREATE",
    "CROSS",
    "CURRENT_DATE",
    "DATE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "DOUBLE",
    "DROP",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "EXTERNAL",
    "FALSE",
    "FILTER",
    "FROM",
    "FULL",
    "GENERATOR",
    "GROUP",
    "HAVING",
    "HTTP",
    "IN",
    "INNER",
    "INSERT",
    "INTERSECT",
    "INTERVAL",
    "INTO",
    "IS",
    "JOIN",
    "KAFKA",
    "LEFT",
    "LIKE",
    "LIMIT",
    "LOCATION",
    "MAX",
    "MIN",
    "MONGODB",
    "NOT",
    "NULL",
    "OFFSET",
    "ON",
    "OPTIONS",
    "OR",
    "ORDER",
    "OUTER",
    "OVER",
    "PARTITION",
    "POSTGRES",
    "PRIMARY",
    "REPLACE",
    "RIGHT",
    "SELECT",
    "SET",
    "SHOW",
    "SSE",
    "STORED",
    "STRUCT",
    "SUM",
    "TABLE",
    "TABLES",
    "THEN",
    "TIMESTAMP",
    "TO",
    "TRUE",
    "UNBOUNDED",
    "UNION",
    "UNNEST",
    "USING",
    "VALUES",
    "VARCHAR",
    "VIEW",
    "WHEN",
    "WHERE",
    "WITH",
];

/// Talks with a person until they leave.
///
/// # Errors
/// The terminal is gone.
pub async fn run(session: &mut Session, greeting: &str) -> Result<()> {
    println!(
        "Essaim {}, {greeting}. \\? for help, \\q to leave.",
        essaim_proto::VERSION
    );
    let mut editor = editor()?;
    let history = history_file();
    if let Some(history) = &history {
        // There is none the first time.
        let _ = editor.load_history(history);
    }
    let done = talk(session, &mut editor).await;
    if let Some(history) = &history
        && let Err(error) = save(&mut editor, history)
    {
        eprintln!(
            "error: the history is not saved: {}: {error}",
            history.display()
        );
    }
    done
}

fn editor() -> Result<Editor<Words, FileHistory>> {
    let config = Config::builder()
        .max_history_size(HISTORY_LINES)?
        .history_ignore_space(true)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(Words::default()));
    Ok(editor)
}

async fn talk(session: &mut Session, editor: &mut Editor<Words, FileHistory>) -> Result<()> {
    let mut typed = String::new();
    loop {
        if let Some(words) = editor.helper_mut() {
            words.names = session.names();
        }
        let prompt = if session.is_between() { PROMPT } else { MORE };
        // Blocks this thread only: the connection lives on another one.
        let mut line = match editor.readline(prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                session.clear();
                typed.clear();
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        typed.push_str(&line);
        line.push('\n');
        let flow = {
            let mut out = std::io::stdout().lock();
            client::interruptible(session.line(&line, &mut out)).await
        };
        // What stood behind a failed statement on its line goes with it.
        if flow.is_err() {
            session.clear();
        }
        if session.is_between() {
            remember(editor, &std::mem::take(&mut typed))?;
        } else {
            typed.push('\n');
        }
        match flow {
            Ok(Flow::Go) => {}
            Ok(Flow::Quit) => return Ok(()),
            Err(error) => match error.downcast_ref::<Failure>() {
                Some(Failure::Interrupted(_)) => eprintln!("cancelled"),
                _ => {
                    client::report(&error);
                }
            },
        }
    }
}

/// Adds to the history, unless a password stands in it as it is, for the history is a file, or it begins with a blank.
fn remember(editor: &mut Editor<Words, FileHistory>, typed: &str) -> Result<()> {
    // The editor looks for a blank at the beginning.
    let typed = typed.trim_end();
    if !typed.is_empty() && !holds_secret(typed) {
        editor.add_history_entry(typed)?;
    }
    Ok(())
}

fn holds_secret(sql: &str) -> bool {
    redact_sql(sql) != sql
}

/// `$XDG_STATE_HOME/essaim/history`, by default below `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = match folder("XDG_STATE_HOME") {
        Some(state) => PathBuf::from(state),
        None => PathBuf::from(folder("HOME")?).join(".local/state"),
    };
    Some(state.join("essaim").join("history"))
}

fn save(editor: &mut Editor<Words, FileHistory>, history: &std::path::Path) -> Result<()> {
    if let Some(folder) = history.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Appended, so that two shells at once both keep theirs.
    Ok(editor.append_history(history)?)
}

/// Completes key words and what the session has declared.
#[derive(Debug, Default)]
struct Words {
    names: Vec<String>,
}

impl Words {
    /// What the word that ends at `pos` may become, and where it begins.
    fn candidates(&self, line: &str, pos: usize) -> (usize, Vec<String>) {
        let typed = &line[..pos];
        let start = typed
            .rfind(|c: char| !c.is_alphanumeric() && c != '_')
            .map_or(0, |at| {
                at + typed[at..].chars().next().map_or(1, char::len_utf8)
            });
        let word = &typed[start..];
        if word.is_empty() {
            return (start, Vec::new());
        }
        let fits = |candidate: &str| {
            let head = candidate.get(..word.len());
            head.is_some_and(|head| head.eq_ignore_ascii_case(word))
        };
        let names = self.names.iter().filter(|name| fits(name)).cloned();
        let keywords = KEYWORDS.iter().filter(|keyword| fits(keyword));
        // As the person writes key words.
        let upper = word.chars().any(char::is_uppercase);
        let cased = |keyword: &&str| match upper {
            true => (*keyword).to_owned(),
            false => keyword.to_lowercase(),
        };
        (start, names.chain(keywords.map(cased)).collect())
    }
}

impl Completer for Words {
    type Candidate = Pair;

    /// With a blank behind the word, unless there is one: the next word follows.
    fn complete(
        &self,
        line: &str,
        pos: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, words) = self.candidates(line, pos);
        let blank = match line[pos..].starts_with(char::is_whitespace) {
            true => "",
            false => " ",
        };
        let pair = |word: String| Pair {
            replacement: format!("{word}{blank}"),
            display: word,
        };
        Ok((start, words.into_iter().map(pair).collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_key_words_complete_as_they_are_typed() {
        let words = Words {
            names: vec!["selected_toots".into()],
        };
        let (start, found) = words.candidates("x, sel", 6);
        assert_eq!(start, 3);
        assert_eq!(found, ["selected_toots", "select"]);
        assert_eq!(words.candidates("WHER", 4).1, ["WHERE"]);
        assert_eq!(words.candidates("WHERE", 5).1, ["WHERE"]);
        assert_eq!(words.candidates("é", 2).1, Vec::<String>::new());
        assert_eq!(words.candidates("a ", 2).1, Vec::<String>::new());
    }

    #[test]
    fn a_completed_word_has_one_blank_behind_it() {
        let history = FileHistory::new();
        let completed = |line: &str, pos: usize| {
            let done = Words::default().complete(line, pos, &Context::new(&history));
            let (start, mut found) = done.unwrap();
            let Pair { replacement, .. } = found.remove(0);
            format!("{}{replacement}{}", &line[..start], &line[pos..])
        };
        assert_eq!(completed("sele", 4), "select ");
        assert_eq!(completed("sele x", 4), "select x");
        assert_eq!(completed("select", 6), "select ");
    }

    #[test]
    fn a_statement_that_begins_with_a_blank_is_kept_out_of_the_history() {
        let mut editor = editor().unwrap();
        for typed in [" SELECT 1;\n", "\tSELECT\n1;", "SELECT 2;  \n", "\n"] {
            remember(&mut editor, typed).unwrap();
        }
        let kept: Vec<&String> = editor.history().iter().collect();
        assert_eq!(kept, ["SELECT 2;"]);
    }

    #[test]
    fn a_password_is_kept_out_of_the_history() {
        assert!(holds_secret("LOCATION 'postgres://app:hunter2@h/db'"));
        assert!(holds_secret("OPTIONS ('sasl.password' 'hunter2')"));
        assert!(!holds_secret(
            "LOCATION 'postgres://app:${PGPASSWORD}@h/db'"
        ));
        assert!(!holds_secret("SELECT 1"));
    }
}
