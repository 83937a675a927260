//! A session: runs one statement after another and remembers what they declare.

use super::commands::{Output, command};
use super::declared::{Declared, Effect};
use super::place::point_at;
use super::print::{Format, Printer, Style};
use super::split::{Splitter, Statement};
use crate::client::Failure;
use crate::progress::Progress;
use anyhow::Result;
use essaim_common::ipc::Decoder;
use essaim_common::net::Link;
use essaim_proto::v1::jobs_client::JobsClient;
use essaim_proto::v1::query_response::Part;
use essaim_proto::v1::{QueryRequest, QueryResponse};
use std::io::{BufWriter, IsTerminal, Write};
use std::time::Instant;
use tonic::Streaming;

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Go,
    Quit,
}

/// A client's side of a session; the master keeps none.
#[derive(Debug)]
pub struct Session {
    client: JobsClient<Link>,
    pub(super) style: Style,
    pub(super) timing: bool,
    /// Where results go instead of to whoever runs the statement.
    pub(super) output: Option<Output>,
    splitter: Splitter,
    pub(super) declared: Declared,
    /// Of the last statement or command, in what it was read from.
    pub(super) statement_line: usize,
}

impl Session {
    /// A session that has declared nothing.
    pub fn new(client: JobsClient<Link>, format: Format) -> Self {
        Self {
            client,
            style: Style {
                format,
                ..Style::default()
            },
            output: None,
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
        // Whoever gives up on a line gives up on the statement that it belongs to.
        let mut splitter = std::mem::take(&mut self.splitter);
        let flow = self.feed(&mut splitter, line, 0, out).await;
        self.splitter = splitter;
        flow
    }

    /// As [`Self::line`], of the text that `splitter` cuts and `depth` files have led to.
    pub(super) async fn feed(
        &mut self,
        splitter: &mut Splitter,
        line: &str,
        depth: usize,
        out: &mut impl Write,
    ) -> Result<Flow> {
        if splitter.is_between()
            && let Some(command) = command(line)
        {
            self.statement_line = splitter.next_line();
            // Only so that lines are counted.
            splitter.push("\n");
            return self.command(command, depth, out).await;
        }
        for statement in splitter.push(line) {
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

    /// Adds to a failure which statement of which file it belongs to.
    ///
    /// # Errors
    /// The failure.
    pub fn placed<T>(&self, result: Result<T>, file: &str) -> Result<T> {
        result.map_err(|error| match error.downcast::<Failure>() {
            Ok(failure) => {
                let place = format!("{file}, statement of line {}", self.statement_line);
                failure.at(&place).into()
            }
            Err(error) => error,
        })
    }

    /// The names of declared tables and views.
    pub fn names(&self) -> Vec<String> {
        let relations = self.declared.relations();
        relations.iter().map(|r| r.1.to_owned()).collect()
    }

    /// Runs a statement. What it has to say goes to the file of `\o`, or else to `out`.
    pub(super) async fn run(&mut self, statement: &Statement, out: &mut impl Write) -> Result<()> {
        self.statement_line = statement.line;
        let sql = &statement.sql;
        let done = match self.output.clone() {
            None => self.statement(sql, out).await,
            Some(output) => {
                let mut file = BufWriter::new(&*output.file);
                let done = self.statement(sql, &mut file).await;
                let done = done.and_then(|()| Ok(file.flush()?));
                done.map_err(|error| match error.is::<Failure>() {
                    true => error,
                    false => Failure::Failed(format!("{}: {error:#}", output.path)).into(),
                })
            }
        };
        done.map_err(|error| point_at(error, sql))
    }

    async fn statement(&mut self, sql: &str, out: &mut impl Write) -> Result<()> {
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
        if self.style.format == Format::Table {
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
                        printer = Some(Printer::new(&self.style, &schema, out)?);
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
            (None, Some(out)) if self.style.format == Format::Table => {
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
