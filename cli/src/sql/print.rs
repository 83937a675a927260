//! Rows as a table, CSV or JSON, written as they arrive and never held whole.

use crate::text::{one_line, printable};
use anyhow::Result;
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::json::WriterBuilder;
use arrow::json::writer::{JsonFormat, Writer};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use comfy_table::{Cell, CellAlignment, ColumnConstraint, Table, TableComponent, Width, presets};
use std::io::Write;
use std::time::Duration;

/// How rows are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns under their names, as psql does it.
    #[default]
    Table,
    /// A line of names and a line a row; NULL is empty, an empty text is "".
    Csv,
    /// One array with an object a row.
    Json,
}

/// What rows look like.
#[derive(Debug, Clone, Default)]
pub struct Style {
    pub format: Format,
    /// A table shows a row as lines, one a column.
    pub expanded: bool,
    /// What stands for NULL in a table.
    pub null: String,
}

/// Rows that a table holds to find the widths of its columns.
const PAGE_ROWS: usize = 1000;
/// A page is also full when its text is so many bytes long.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// Writes the rows of one result.
pub struct Printer<'a, W: Write> {
    shape: Shape<'a, W>,
    rows: u64,
}

enum Shape<'a, W: Write> {
    Table(&'a mut W, Page),
    Expanded(&'a mut W, Record),
    Csv(&'a mut W),
    Json(Box<Writer<&'a mut W, ArrayOfLines>>),
}

impl<'a, W: Write> Printer<'a, W> {
    /// Begins a result with these columns.
    ///
    /// # Errors
    /// The output is closed.
    pub fn new(style: &Style, schema: &SchemaRef, out: &'a mut W) -> Result<Self> {
        let shape = match style.format {
            Format::Table if style.expanded => {
                Shape::Expanded(out, Record::new(schema, &style.null))
            }
            Format::Table => Shape::Table(out, Page::new(schema, &style.null)),
            Format::Csv => {
                let names = schema
                    .fields()
                    .iter()
                    .map(|field| Some(field.name().as_str()));
                csv_line(out, names)?;
                Shape::Csv(out)
            }
            Format::Json => {
                let builder = WriterBuilder::new().with_explicit_nulls(true);
                Shape::Json(Box::new(builder.build(out)))
            }
        };
        Ok(Self { shape, rows: 0 })
    }

    /// Writes more rows.
    ///
    /// # Errors
    /// The output is closed, or a type has no JSON.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        match &mut self.shape {
            Shape::Table(out, page) => {
                for_each_row(batch, |cells| {
                    page.add(cells);
                    if page.is_full() {
                        page.print(out)?;
                    }
                    Ok(())
                })?;
                out.flush()?;
            }
            Shape::Expanded(out, record) => {
                for_each_row(batch, |cells| record.print(cells, out))?;
                out.flush()?;
            }
            Shape::Csv(out) => {
                for_each_row(batch, |cells| {
                    csv_line(out, cells.iter().map(Option::as_deref))
                })?;
                out.flush()?;
            }
            Shape::Json(writer) => {
                writer.write(batch)?;
                writer.get_mut().flush()?;
            }
        }
        Ok(())
    }

    /// Ends the result. A table says how many rows it has, and the time if one is given.
    ///
    /// # Errors
    /// The output is closed.
    pub fn finish(self, elapsed: Option<Duration>) -> Result<()> {
        match self.shape {
            Shape::Table(out, mut page) => {
                page.print(out)?;
                count(out, self.rows, elapsed)?;
            }
            Shape::Expanded(out, _) => count(out, self.rows, elapsed)?,
            Shape::Csv(out) => out.flush()?,
            Shape::Json(mut writer) => {
                writer.finish()?;
                let out = writer.into_inner();
                out.write_all(b"\n")?;
                out.flush()?;
            }
        }
        Ok(())
    }
}

fn count(out: &mut impl Write, rows: u64, elapsed: Option<Duration>) -> Result<()> {
    let word = if rows == 1 { "row" } else { "rows" };
    match elapsed {
        Some(t) => writeln!(out, "({rows} {word}, {:.3} s)", t.as_secs_f64())?,
        None => writeln!(out, "({rows} {word})")?,
    }
    Ok(out.flush()?)
}

/// Hands each row's cells over as text, NULL as nothing.
fn for_each_row(
    batch: &RecordBatch,
    mut each: impl FnMut(Vec<Option<String>>) -> Result<()>,
) -> Result<()> {
    // Nulls within lists and structs need a word; a cell that is null never gets here.
    let options = FormatOptions::new().with_null("NULL");
    let columns = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    let nulls: Vec<_> = batch.columns().iter().map(|c| c.logical_nulls()).collect();
    for row in 0..batch.num_rows() {
        let mut cells = Vec::with_capacity(columns.len());
        for (column, nulls) in columns.iter().zip(&nulls) {
            let is_null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
            cells.push(match is_null {
                true => None,
                false => Some(column.value(row).try_to_string()?),
            });
        }
        each(cells)?;
    }
    Ok(())
}

/// One line of CSV (RFC 4180, lines end with a line feed).
fn csv_line<'t>(out: &mut impl Write, cells: impl Iterator<Item = Option<&'t str>>) -> Result<()> {
    for (index, cell) in cells.enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        match cell {
            None => {}
            Some(text) if text.is_empty() || text.contains(['"', ',', '\n', '\r']) => {
                write!(out, "\"{}\"", text.replace('"', "\"\""))?;
            }
            Some(text) => out.write_all(text.as_bytes())?,
        }
    }
    out.write_all(b"\n")?;
    Ok(())
}

/// A JSON array with each row on a line of its own.
#[derive(Debug, Default)]
struct ArrayOfLines;

impl JsonFormat for ArrayOfLines {
    fn start_stream<W: Write>(&self, out: &mut W) -> Result<(), ArrowError> {
        Ok(out.write_all(b"[")?)
    }

    fn start_row<W: Write>(&self, out: &mut W, is_first_row: bool) -> Result<(), ArrowError> {
        Ok(out.write_all(if is_first_row { b"" } else { b",\n" })?)
    }

    fn end_stream<W: Write>(&self, out: &mut W) -> Result<(), ArrowError> {
        Ok(out.write_all(b"]")?)
    }
}

/// The rows of a table that are not written yet. The first page's columns are the narrowest of all pages.
struct Page {
    names: Vec<String>,
    null: String,
    right: Vec<bool>,
    widths: Option<Vec<u16>>,
    rows: Vec<Vec<String>>,
    bytes: usize,
}

impl Page {
    fn new(schema: &SchemaRef, null: &str) -> Self {
        let fields = schema.fields();
        Self {
            names: fields.iter().map(|f| printable(f.name())).collect(),
            null: printable(null),
            right: fields.iter().map(|f| f.data_type().is_numeric()).collect(),
            widths: None,
            rows: Vec::new(),
            bytes: 0,
        }
    }

    fn add(&mut self, cells: Vec<Option<String>>) {
        let shown = |cell: Option<String>| match cell {
            Some(text) => printable(&text),
            None => self.null.clone(),
        };
        let cells: Vec<String> = cells.into_iter().map(shown).collect();
        self.bytes += cells.iter().map(String::len).sum::<usize>();
        self.rows.push(cells);
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= PAGE_ROWS || self.bytes >= PAGE_BYTES
    }

    /// Writes the page, with the names above it if it is the first, and empties it.
    fn print(&mut self, out: &mut impl Write) -> Result<()> {
        let first = self.widths.is_none();
        if !first && self.rows.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_style(TableComponent::VerticalLines, '|')
            .set_style(TableComponent::HeaderLines, '-')
            .set_style(TableComponent::MiddleHeaderIntersections, '+');
        if first {
            let centred = |name| Cell::new(name).set_alignment(CellAlignment::Center);
            table.set_header(self.names.iter().map(centred));
        }
        for row in self.rows.drain(..) {
            table.add_row(row);
        }
        self.bytes = 0;
        for (index, column) in table.column_iter_mut().enumerate() {
            if self.right[index] {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if let Some(widths) = &self.widths {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(widths[index])));
            }
        }
        if first {
            // With a blank on either side.
            let widths = table.column_max_content_widths();
            self.widths = Some(widths.into_iter().map(|w| w.saturating_add(2)).collect());
        }
        if !self.names.is_empty() {
            writeln!(out, "{}", table.trim_fmt())?;
        }
        Ok(())
    }
}

/// A row at a time, a line a column (`\x` of psql).
struct Record {
    names: Vec<String>,
    null: String,
    /// Of the longest name, in characters.
    width: usize,
    number: u64,
}

impl Record {
    fn new(schema: &SchemaRef, null: &str) -> Self {
        let names: Vec<String> = schema.fields().iter().map(|f| one_line(f.name())).collect();
        let width = names.iter().map(|n| n.chars().count()).max();
        Self {
            names,
            null: printable(null),
            width: width.unwrap_or_default(),
            number: 0,
        }
    }

    fn print(&mut self, cells: Vec<Option<String>>, out: &mut impl Write) -> Result<()> {
        self.number += 1;
        let width = self.width;
        writeln!(out, "-[ RECORD {} ]{}", self.number, "-".repeat(width))?;
        for (name, cell) in self.names.iter().zip(cells) {
            let text = cell.as_deref().map(printable);
            let text = text.as_ref().unwrap_or(&self.null);
            for (index, line) in text.split('\n').enumerate() {
                let name = if index == 0 { name.as_str() } else { "" };
                let line = format!("{name:<width$} | {line}");
                writeln!(out, "{}", line.trim_end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
