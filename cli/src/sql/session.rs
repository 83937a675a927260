//! A session: runs one statement after another and remembers what they declare.

use super::declared::{Declared, Effect};
use super::print::{Format, Printer};
use super::split::{Splitter, Statement};
use crate::client::Failure;
use crate::progress::Progress;
use crate::text::printable;
use anyhow::Result;
use essaim_common::ipc::Decoder;
use essaim_common::net::Link;
use essaim_common::secret::redact_sql;
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::query_response::Part;
use essaim_proto::v1::{QueryRequest, QueryResponse};
use std::io::{IsTerminal, Write};
use std::time::Instant;
use tonic::Streaming;

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Go,
    Quit,
}

const HELP: &str = "\
Statements end with ; and may span lines.
  \\d          tables and views declared in this session
  \\d NAME     the columns of one
  \\timing     whether results say how long they took
  \\?          this help
  \\q          leave (also Ctrl-D)
Ctrl-C cancels a running query or clears what has been typed.";

/// A client's side of a session; the master keeps none.
#[derive(Debug)]
pub struct Session {
    client: JobsClient<Link>,
    format: Format,
    timing: bool,
    splitter: Splitter,
    declared: Declared,
    statement_line: usize,
}

impl Session {
    /// A session that has declared nothing.
    pub fn new(client: JobsClient<Link>, format: Format) -> Self {
        Self {
            client,
            format,
            timing: std::io::stdout().is_terminal(),
            splitter: Splitter::default(),
            declared: Declared::default(),
            statement_line: 1,
        }
    }

    /// Takes a line (or several): runs the statements that end with it, or the command that it is.
    ///
    /// # Errors
    /// What the first statement that fails ends with; later ones of the line are not run.
    pub async fn line(&mut self, line: &str, out: &mut impl Write) -> Result<Flow> {
        let command = line.trim();
        if self.splitter.is_between() && command.starts_with('\\') {
            return self.command(command, out).await;
        }
        for statement in self.splitter.push(line) {
            self.run(&statement, out).await?;
        }
        Ok(Flow::Go)
    }

    /// Runs what stands behind the last semicolon.
    ///
    /// # Errors
    /// What the statement ends with.
    pub async fn finish(&mut self, out: &mut impl Write) -> Result<()> {
        match self.splitter.finish() {
            Some(statement) => self.run(&statement, out).await,
            None => Ok(()),
        }
    }

    /// Forgets a statement that has not ended yet.
    pub fn clear(&mut self) {
        self.splitter = Splitter::default();
    }

    /// Whether the next line begins a statement.
    pub fn is_between(&self) -> bool {
        self.splitter.is_between()
    }

    /// The line on which the last statement that was run begins.
    pub fn statement_line(&self) -> usize {
        self.statement_line
    }

    /// The names of declared tables and views.
    pub fn names(&self) -> Vec<String> {
        let relations = self.declared.relations();
        relations.iter().map(|r| r.1.to_owned()).collect()
    }

    async fn command(&mut self, command: &str, out: &mut impl Write) -> Result<Flow> {
        let (name, argument) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        match (name, argument.trim().trim_end_matches(';')) {
            ("\\q", _) => return Ok(Flow::Quit),
            ("\\?", _) => writeln!(out, "{HELP}")?,
            ("\\d", "") => self.list(out)?,
            ("\\d", name) => {
                let sql = format!("DESCRIBE {name}");
                self.query(&sql, out).await?;
            }
            ("\\timing", _) => {
                self.timing = !self.timing;
                let state = if self.timing { "on" } else { "off" };
                writeln!(out, "Timing is {state}.")?;
            }
            _ => {
                return Err(
                    Failure::Usage(format!("there is no command {name}: \\? lists them")).into(),
                );
            }
        }
        out.flush()?;
        Ok(Flow::Go)
    }

    fn list(&self, out: &mut impl Write) -> Result<()> {
        let relations = self.declared.relations();
        if relations.is_empty() {
            writeln!(
                out,
                "Nothing is declared: CREATE EXTERNAL TABLE … or CREATE VIEW …"
            )?;
        }
        for (kind, name, sql) in relations {
            let shown = redact_sql(sql);
            let one_line: Vec<&str> = shown.split_whitespace().collect();
            let shown = printable(&one_line.join(" "));
            writeln!(out, "{kind:<5}  {name}  {shown}")?;
        }
        Ok(())
    }

    async fn run(&mut self, statement: &Statement, out: &mut impl Write) -> Result<()> {
        self.statement_line = statement.line;
        let sql = &statement.sql;
        let effect = Effect::of(sql);
        if effect == Effect::None {
            return self.query(sql, out).await;
        }
        // The master checks it now; from here on the session sends it along.
        self.check(&self.declared, sql).await?;
        let declared = self.declared.after(sql, &effect);
        if let Effect::Drop(names) = &effect {
            self.check(&declared, "SELECT 1").await.map_err(|failure| {
                failure.at(&format!(
                    "without {} what was declared later does not stand",
                    names.join(", ")
                ))
            })?;
        }
        self.declared = declared;
        if self.format == Format::Table {
            writeln!(out, "{}", tag(sql))?;
            out.flush()?;
        }
        Ok(())
    }

    /// Runs a statement whose rows nobody wants to see.
    async fn check(&self, declared: &Declared, sql: &str) -> Result<(), Failure> {
        let mut answer = self.ask(declared, sql, false).await?;
        while answer.message().await?.is_some() {}
        Ok(())
    }

    async fn ask(
        &self,
        declared: &Declared,
        sql: &str,
        progress: bool,
    ) -> Result<Streaming<QueryResponse>, Failure> {
        let request = QueryRequest {
            setup: declared.setup(),
            sql: sql.to_owned(),
            progress,
        };
        // No deadline: a query may take hours, and keep-alive pings notice a master that is gone.
        Ok(self.client.clone().query(request).await?.into_inner())
    }

    /// Runs a statement and prints its rows as they arrive.
    async fn query(&self, sql: &str, out: &mut impl Write) -> Result<()> {
        let started = Instant::now();
        let mut progress = Progress::new();
        let rows_on_terminal = std::io::stdout().is_terminal();
        let mut answer = self.ask(&self.declared, sql, progress.wanted()).await?;
        let mut decoder = Decoder::default();
        let mut printer = None;
        // The printer borrows `out`: it is handed over with the first schema.
        let mut out = Some(out);
        while let Some(part) = answer.message().await.map_err(Failure::from)? {
            match part.part {
                Some(Part::Progress(job)) => progress.update(&job),
                Some(Part::ArrowIpc(chunk)) => {
                    let batches = decoder.decode(chunk)?;
                    if printer.is_none()
                        && let Some(schema) = decoder.schema()
                        && !schema.fields().is_empty()
                        && let Some(out) = out.take()
                    {
                        printer = Some(Printer::new(self.format, &schema, out)?);
                    }
                    let Some(printer) = &mut printer else {
                        continue;
                    };
                    for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
                        if rows_on_terminal {
                            progress.clear();
                        }
                        printer.write(batch)?;
                    }
                }
                None => {}
            }
        }
        progress.clear();
        let elapsed = self.timing.then(|| started.elapsed());
        match (printer, out) {
            (Some(printer), _) => printer.finish(elapsed)?,
            (None, Some(out)) if self.format == Format::Table => {
                writeln!(out, "{}", tag(sql))?;
                out.flush()?;
            }
            (None, _) => {}
        }
        Ok(())
    }
}

/// What to say of a statement without rows: its first words, as psql does.
fn tag(sql: &str) -> String {
    let words: Vec<String> = super::split::tokens(sql)
        .map_while(|(_, word)| {
            let word = word.to_uppercase();
            let known = [
                "SET",
                "RESET",
                "CREATE",
                "OR",
                "REPLACE",
                "UNBOUNDED",
                "EXTERNAL",
                "TEMP",
                "TEMPORARY",
                "TABLE",
                "VIEW",
                "DROP",
                "INSERT",
                "COPY",
            ];
            known.contains(&word.as_str()).then_some(word)
        })
        .filter(|word| !matches!(word.as_str(), "OR" | "REPLACE"))
        .collect();
    if words.is_empty() {
        "OK".to_owned()
    } else {
        words.join(" ")
    }
}

#[cfg(test)]
mod tests;
