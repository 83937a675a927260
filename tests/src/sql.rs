//! Answers side by side: Essaim's record batches and PostgreSQL's text, equal wherever both are exact.

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// A row, each value as text.
pub type Row = Vec<Option<String>>;

/// A statement that declares a table `name` of the numbers from 0 to `rows`, exclusive, in its column `value`.
pub fn numbers(name: &str, rows: u64) -> String {
    format!(
        "CREATE EXTERNAL TABLE {name} STORED AS GENERATOR LOCATION 'numbers' OPTIONS (number_of_rows '{rows}');\n"
    )
}

/// All rows as text, in order.
///
/// # Errors
/// A type that has no text.
pub fn rows(batches: &[RecordBatch]) -> Result<Vec<Row>> {
    let options = FormatOptions::default();
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch
            .columns()
            .iter()
            .map(|column| Ok((column, ArrayFormatter::try_new(column, &options)?)))
            .collect::<Result<Vec<_>>>()?;
        for row in 0..batch.num_rows() {
            let values = columns
                .iter()
                .map(|(column, text)| (!column.is_null(row)).then(|| text.value(row).to_string()));
            rows.push(values.collect());
        }
    }
    Ok(rows)
}

/// All values of one column of BIGINTs, none of them null.
///
/// # Errors
/// Another type.
pub fn integers(batches: &[RecordBatch], column: usize) -> Result<Vec<i64>> {
    let mut values = Vec::new();
    for batch in batches {
        let array = batch
            .column(column)
            .as_primitive_opt::<Int64Type>()
            .with_context(|| format!("column {column} of {:?} is no BIGINT", batch.schema()))?;
        ensure!(array.null_count() == 0, "column {column} holds nulls");
        values.extend(array.values().iter().copied());
    }
    Ok(values)
}

/// The text of all rows, for EXPLAIN.
///
/// # Errors
/// A type that has no text.
pub fn text(batches: &[RecordBatch]) -> Result<String> {
    let lines = rows(batches)?.into_iter().map(|row| {
        let values: Vec<_> = row.into_iter().flatten().collect();
        values.join("\t")
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Whether two answers must have their rows in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The query's ORDER BY leaves no choice.
    Total,
    /// Compared as sorted multisets.
    Any,
}

/// Compares an answer of Essaim with PostgreSQL's to the same question.
///
/// Integers, texts and dates must be equal; decimals too, unless PostgreSQL's has more digits than Essaim's type
/// can hold (an average, a quotient): then by less than one unit of the last digit. Floats by 10⁻⁹ of their size.
///
/// # Errors
/// The first difference.
pub fn compare(essaim: &[RecordBatch], postgres: &[Row], order: Order) -> Result<()> {
    let types: Vec<DataType> = match essaim.first() {
        Some(batch) => {
            let schema = batch.schema();
            schema
                .fields()
                .iter()
                .map(|field| field.data_type().clone())
                .collect()
        }
        None => Vec::new(),
    };
    let mut ours = rows(essaim)?;
    let mut theirs = postgres.to_vec();
    if order == Order::Any {
        ours.sort();
        theirs.sort();
    }
    ensure!(
        ours.len() == theirs.len(),
        "{} rows, but {} in PostgreSQL; the first are {:?} and {:?}",
        ours.len(),
        theirs.len(),
        ours.first(),
        theirs.first()
    );
    for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        ensure!(
            ours.len() == theirs.len(),
            "{} columns, but {} in PostgreSQL",
            ours.len(),
            theirs.len()
        );
        for (column, data_type) in types.iter().enumerate() {
            same(&ours[column], &theirs[column], data_type).with_context(|| {
                format!("row {number}, column {column} ({data_type}): {ours:?} and {theirs:?}")
            })?;
        }
    }
    Ok(())
}

fn same(ours: &Option<String>, theirs: &Option<String>, data_type: &DataType) -> Result<()> {
    let (ours, theirs) = match (ours, theirs) {
        (Some(ours), Some(theirs)) => (ours, theirs),
        (None, None) => return Ok(()),
        _ => bail!("one is null: {ours:?} and {theirs:?}"),
    };
    let equal = match data_type {
        DataType::Float32 | DataType::Float64 => {
            let (a, b): (f64, f64) = (ours.parse()?, theirs.parse()?);
            a == b || (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
        }
        data_type if data_type.is_integer() || data_type.is_decimal() => {
            Decimal::parse(ours)?.agrees_with(Decimal::parse(theirs)?)
        }
        _ => ours == theirs,
    };
    ensure!(equal, "{ours} is not {theirs}");
    Ok(())
}

/// A number with as many digits after the point as were written: `unscaled` × 10^-`scale`.
#[derive(Debug, Clone, Copy)]
struct Decimal {
    unscaled: i128,
    scale: u32,
}

impl Decimal {
    fn parse(text: &str) -> Result<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let unscaled = format!("{whole}{fraction}")
            .parse()
            .with_context(|| format!("{text:?} is no decimal"))?;
        let scale = u32::try_from(fraction.len())?;
        Ok(Self { unscaled, scale })
    }

    /// Without zeros at the end of the fraction.
    fn trimmed(mut self) -> Self {
        while self.scale > 0 && self.unscaled % 10 == 0 {
            self.unscaled /= 10;
            self.scale -= 1;
        }
        self
    }

    /// Whether this, with all the digits of its type, is `exact` as far as the type can hold it.
    fn agrees_with(self, exact: Self) -> bool {
        let exact = exact.trimmed();
        let power = |digits| 10i128.checked_pow(digits);
        if exact.scale <= self.scale {
            let exact = power(self.scale - exact.scale).and_then(|p| exact.unscaled.checked_mul(p));
            return exact == Some(self.unscaled);
        }
        // An integer is never a rounded one.
        self.scale > 0
            && power(exact.scale - self.scale)
                .is_some_and(|p| (self.unscaled - exact.unscaled / p).abs() <= 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees(ours: &str, theirs: &str) -> Result<bool> {
        Ok(Decimal::parse(ours)?.agrees_with(Decimal::parse(theirs)?))
    }

    #[test]
    fn a_decimal_is_compared_as_exactly_as_its_type_allows() -> Result<()> {
        assert!(agrees("12.3400", "12.34")?);
        assert!(agrees("-0.50", "-0.5000000")?);
        assert!(agrees("25.522005", "25.5220058532573370")?);
        assert!(agrees("25.522006", "25.5220058532573370")?);
        assert!(!agrees("25.522008", "25.5220058532573370")?);
        assert!(!agrees("12.3401", "12.34")?);
        assert!(!agrees("12", "12.4")?);
        Ok(())
    }
}
