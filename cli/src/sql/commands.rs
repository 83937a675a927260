//! What a line means that is no SQL: `\d`, `\x`, `\i` and the like, as psql has them.

use super::session::{Flow, Session};
use super::split::{Splitter, Statement};
use crate::client::Failure;
use crate::jobs::read_file;
use crate::text::printable;
use anyhow::Result;
use essaim_common::secret::redact_sql;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

/// How deep files may run files: one that runs itself has an end.
const MAX_DEPTH: usize = 16;

const HELP: &str = "\
Statements end with ; and may span lines.
  \\d                tables and views declared in this session: \\dt only tables, \\dv only views
  \\d NAME           the columns of one
  \\i FILE           run the statements of a file
  \\o [FILE]         write results to a file; without one, here again
  \\x [on|off]       show a row as lines, one a column
  \\pset null TEXT   what stands for NULL in tables
  \\timing [on|off]  say how long results took
  \\?, help          this help
  \\q, quit, exit    leave (also Ctrl-D)
Ctrl-C cancels a running query or clears what has been typed.";

/// Where `\o` sends results.
#[derive(Debug, Clone)]
pub struct Output {
    pub path: String,
    pub file: Arc<File>,
}

/// The command that a line between two statements is, if it is one.
pub fn command(line: &str) -> Option<&str> {
    let line = line.trim();
    let bare = line.trim_end_matches(';').trim_end();
    let same = |word: &str| bare.eq_ignore_ascii_case(word);
    match line.starts_with('\\') {
        true => Some(bare),
        false if same("quit") || same("exit") => Some("\\q"),
        false if same("help") => Some("\\?"),
        false => None,
    }
}

impl Session {
    /// Runs a command; `depth` is how many files have led to it.
    pub(super) async fn command(
        &mut self,
        command: &str,
        depth: usize,
        out: &mut impl Write,
    ) -> Result<Flow> {
        let (name, argument) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        match (name, argument.trim()) {
            ("\\q", _) => return Ok(Flow::Quit),
            ("\\?", _) => writeln!(out, "{HELP}")?,
            ("\\d", "") => self.list(&["table", "view"], out)?,
            ("\\dt", "") => self.list(&["table"], out)?,
            ("\\dv", "") => self.list(&["view"], out)?,
            ("\\d" | "\\dt" | "\\dv", name) => {
                let statement = Statement {
                    sql: format!("DESCRIBE {name}"),
                    line: self.statement_line,
                };
                self.run(&statement, out).await?;
            }
            ("\\i", "") => return Err(usage("\\i wants a file: \\i FILE")),
            ("\\i", file) => {
                let line = self.statement_line;
                // In a box, as a file may run another one.
                Box::pin(self.include(&unquoted(file), depth + 1, out)).await?;
                self.statement_line = line;
            }
            ("\\o", "") => self.output = None,
            ("\\o", file) => self.output = Some(create(&unquoted(file))?),
            ("\\x", argument) => {
                self.style.expanded = switched(name, self.style.expanded, argument)?;
                let state = on_or_off(self.style.expanded);
                writeln!(out, "Expanded display is {state}.")?;
            }
            ("\\timing", argument) => {
                self.timing = switched(name, self.timing, argument)?;
                writeln!(out, "Timing is {}.", on_or_off(self.timing))?;
            }
            ("\\pset", argument) => {
                let (option, value) = argument
                    .split_once(char::is_whitespace)
                    .unwrap_or((argument, ""));
                if option != "null" {
                    return Err(usage(
                        "\\pset sets what stands for NULL in tables: \\pset null TEXT",
                    ));
                }
                self.style.null = unquoted(value.trim());
                let shown = printable(&self.style.null);
                writeln!(out, "NULL is shown as \"{shown}\".")?;
            }
            _ => {
                return Err(usage(&format!(
                    "there is no command {name}: \\? lists them"
                )));
            }
        }
        out.flush()?;
        Ok(Flow::Go)
    }

    /// Runs the statements and commands of a file; `\q` ends the file.
    ///
    /// # Errors
    /// What the first statement that fails ends with, and where in the file it stands; the file cannot be read.
    pub async fn include(&mut self, file: &str, depth: usize, out: &mut impl Write) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(usage(&format!(
                "{file}: files run each other with \\i, more than {MAX_DEPTH} deep"
            )));
        }
        let sql = read_file(file)?;
        let mut splitter = Splitter::default();
        for line in sql.split_inclusive('\n') {
            let flow = self.feed(&mut splitter, line, depth, out).await;
            if self.placed(flow, file)? == Flow::Quit {
                return Ok(());
            }
        }
        let done = match splitter.finish() {
            Some(statement) => self.run(&statement, out).await,
            None => Ok(()),
        };
        self.placed(done, file)
    }

    /// What is declared, as it was typed, so that it can be used again.
    fn list(&self, kinds: &[&str], out: &mut impl Write) -> Result<()> {
        let relations = self.declared.relations();
        let mut shown = relations.iter().filter(|(kind, ..)| kinds.contains(kind));
        let Some(first) = shown.next() else {
            let how = match kinds {
                ["table"] => "CREATE EXTERNAL TABLE …",
                ["view"] => "CREATE VIEW …",
                _ => "CREATE EXTERNAL TABLE … or CREATE VIEW …",
            };
            writeln!(out, "Nothing is declared: {how}")?;
            return Ok(());
        };
        for (kind, name, sql) in std::iter::once(first).chain(shown) {
            let sql = printable(&redact_sql(sql));
            // A comment at the end would take the semicolon in.
            let end = match sql.lines().last() {
                Some(last) if last.contains("--") => "\n;",
                _ => ";",
            };
            writeln!(out, "-- {kind} {}\n{sql}{end}", printable(name))?;
        }
        Ok(())
    }
}

fn usage(text: &str) -> anyhow::Error {
    Failure::Usage(text.to_owned()).into()
}

fn create(path: &str) -> Result<Output> {
    if path.starts_with('|') {
        return Err(usage("\\o takes a file, not a command"));
    }
    let file = File::create(path).map_err(|e| Failure::Usage(format!("{path}: {e}")))?;
    Ok(Output {
        path: path.to_owned(),
        file: Arc::new(file),
    })
}

/// A switch after its command, which turns it over unless it says how it shall be.
fn switched(command: &str, now: bool, argument: &str) -> Result<bool> {
    match argument.to_ascii_lowercase().as_str() {
        "" => Ok(!now),
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(usage(&format!("{command} is on or off, not {other}"))),
    }
}

fn on_or_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// A text without the single quotes around it, if it has them; within them one is written twice.
fn unquoted(text: &str) -> String {
    let inner = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\''));
    match inner {
        Some(inner) => inner.replace("''", "'"),
        None => text.to_owned(),
    }
}
