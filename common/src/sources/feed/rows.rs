//! From records to batches, without those that are no rows.

use super::entry::{Entry, Meta};
use super::plan::{Format, Metadata, OnError, RowPlan};
use crate::bad_records::{BadRecords, MAX_BAD_RECORDS};
use crate::error::{Error, Result};
use crate::scan::ScanMetrics;
use crate::sources::kafka::decode::{JsonDecoder, Slices};
use arrow::array::{
    ArrayRef, BooleanArray, Int32Array, RecordBatch, RecordBatchOptions, StringViewArray,
    StringViewBuilder, TimestampMillisecondArray,
};
use arrow::compute::filter;
use arrow::datatypes::{Fields, Schema, SchemaRef};
use datafusion::execution::TaskContext;
use std::sync::Arc;

/// Makes batches of the records of one split.
pub struct Rows {
    plan: RowPlan,
    schema: SchemaRef,
    decoder: Option<JsonDecoder>,
    batch_size: usize,
    metrics: ScanMetrics,
    bad_records: Option<Arc<BadRecords>>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rows({:?})", self.plan)
    }
}

impl Rows {
    /// Rows with the columns of `schema`, some of the table's.
    ///
    /// # Errors
    /// A type that JSON cannot hold.
    pub fn new(
        plan: RowPlan,
        schema: SchemaRef,
        ctx: &TaskContext,
        metrics: ScanMetrics,
    ) -> Result<Self> {
        let batch_size = ctx.session_config().batch_size().max(1);
        let decoder = match plan.format {
            Format::Raw => None,
            Format::Json => {
                let fields = schema.fields().iter();
                let declared = fields.filter(|field| plan.metadata(field.name()).is_none());
                let declared = Arc::new(Schema::new(declared.cloned().collect::<Fields>()));
                Some(JsonDecoder::new(declared, plan.timestamp_unit, batch_size)?)
            }
        };
        Ok(Self {
            plan,
            schema,
            decoder,
            batch_size,
            metrics,
            bad_records: ctx.session_config().get_extension(),
        })
    }

    /// The rows of records, the first of which has the number `first` in its journal or its answer.
    ///
    /// # Errors
    /// A record that is no row under `on_error 'fail'`.
    pub fn batches(&mut self, records: &[Entry], first: i64) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::with_capacity(records.len().div_ceil(self.batch_size));
        let mut number = first;
        for records in records.chunks(self.batch_size) {
            batches.push(self.batch(records, number)?);
            number += records.len() as i64;
        }
        Ok(batches)
    }

    fn batch(&mut self, records: &[Entry], first: i64) -> Result<RecordBatch> {
        let internal = |e: arrow::error::ArrowError| Error::internal(e.to_string());
        self.metrics.rows_in.add(records.len());
        let bytes = records.iter().map(|record| record.payload.len()).sum();
        self.metrics.bytes_in.add(bytes);
        let decoded = match &mut self.decoder {
            Some(decoder) => {
                let mut slices = Slices::default();
                for record in records {
                    slices.push(Some(&record.payload));
                }
                Some(decoder.decode(&slices)?)
            }
            None => None,
        };
        let bad = decoded.as_ref().map_or(&[][..], |d| d.bad.as_slice());
        self.treat(bad, records, first)?;
        let good = (!bad.is_empty()).then(|| {
            let mut good = vec![true; records.len()];
            for (index, _) in bad {
                good[*index] = false;
            }
            BooleanArray::from(good)
        });
        let mut declared = decoded.as_ref().map(|d| d.rows.columns().iter());
        let columns = self
            .schema
            .fields()
            .iter()
            .map(|field| -> Result<ArrayRef> {
                let column = match (self.plan.metadata(field.name()), &mut declared) {
                    (Some(kind), _) => metadata_column(kind, records),
                    (None, None) => Arc::new(texts(records)?) as ArrayRef,
                    // The decoder's columns are the projected ones in the same order, and without the bad records.
                    (None, Some(declared)) => {
                        return declared.next().map(Arc::clone).ok_or_else(|| {
                            Error::internal(format!("column {} was not decoded", field.name()))
                        });
                    }
                };
                match &good {
                    Some(good) => filter(&column, good).map_err(internal),
                    None => Ok(column),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let rows = records.len() - bad.len();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(internal)
    }

    fn treat(&self, bad: &[(usize, String)], records: &[Entry], first: i64) -> Result<()> {
        for (index, reason) in bad.iter().take(MAX_BAD_RECORDS) {
            let number = first + *index as i64;
            self.note(&records[*index].meta.origin, number, reason);
        }
        match (self.plan.on_error, bad.first()) {
            (OnError::Fail, Some((index, reason))) => Err(Error::data(format!(
                "{}, record {}: it does not decode: {reason}; correct the columns, or set on_error 'skip'",
                records[*index].meta.origin,
                first + *index as i64,
            ))),
            _ => {
                self.metrics.records_skipped.add(bad.len());
                Ok(())
            }
        }
    }

    /// Leaves out an answer that holds no records, if that is allowed.
    ///
    /// # Errors
    /// What is wrong with the answer, under `on_error 'fail'`.
    pub fn skip(&self, origin: &str, error: Error) -> Result<()> {
        if self.plan.on_error == OnError::Fail || error.is_transient() {
            return Err(error);
        }
        self.note(origin, 0, &error.to_string());
        self.metrics.records_skipped.add(1);
        Ok(())
    }

    fn note(&self, origin: &str, number: i64, reason: &str) {
        if let Some(noted) = &self.bad_records {
            noted.note(origin, 0, number, reason);
        }
    }
}

fn metadata_column(kind: Metadata, records: &[Entry]) -> ArrayRef {
    let all = records.iter().map(|record| &record.meta);
    let text = |of: fn(&Meta) -> Option<&str>| {
        let mut builder =
            StringViewBuilder::with_capacity(records.len()).with_deduplicate_strings();
        for meta in all.clone() {
            builder.append_option(of(meta));
        }
        Arc::new(builder.finish()) as ArrayRef
    };
    match kind {
        Metadata::Origin => text(|meta| Some(&meta.origin)),
        Metadata::Id => text(|meta| meta.id.as_deref()),
        Metadata::Status => {
            let statuses = all.map(|meta| meta.status.map(i32::from));
            Arc::new(statuses.collect::<Int32Array>())
        }
        Metadata::At => Arc::new(TimestampMillisecondArray::from_iter_values(
            all.map(|meta| meta.at_ms),
        )),
    }
}

fn texts(records: &[Entry]) -> Result<StringViewArray> {
    let mut builder = StringViewBuilder::with_capacity(records.len());
    for record in records {
        let text = std::str::from_utf8(&record.payload)
            .map_err(|e| Error::internal(format!("a record is no UTF-8: {e}")))?;
        builder.append_value(text);
    }
    Ok(builder.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::kafka::timestamps::EpochUnit;
    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Field, Int64Type};
    use bytes::Bytes;
    use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;

    fn rows(on_error: OnError) -> Rows {
        let plan = RowPlan {
            format: Format::Json,
            timestamp_unit: EpochUnit::Milliseconds,
            on_error,
            metadata: vec![("_url".to_owned(), Metadata::Origin)],
        };
        let schema = Schema::new(vec![
            Field::new("_url", DataType::Utf8View, true),
            Field::new("id", DataType::Int64, true),
        ]);
        let metrics = ScanMetrics::new(&ExecutionPlanMetricsSet::new(), 0);
        Rows::new(plan, Arc::new(schema), &TaskContext::default(), metrics).unwrap()
    }

    fn records() -> Vec<Entry> {
        let record = |(n, payload): (usize, &'static str)| Entry {
            meta: Meta {
                origin: format!("u{n}"),
                id: None,
                status: None,
                at_ms: 0,
            },
            mark: None,
            payload: Bytes::from_static(payload.as_bytes()),
        };
        let payloads = ["{\"id\":1}", "17", "{\"id\":2}"];
        payloads.into_iter().enumerate().map(record).collect()
    }

    #[test]
    fn a_bad_record_is_left_out_with_its_metadata() {
        let mut rows = rows(OnError::Skip);
        let batches = rows.batches(&records(), 40).unwrap();
        let [batch] = batches.as_slice() else {
            panic!("{batches:?}");
        };
        let urls: Vec<&str> = batch.column(0).as_string_view().iter().flatten().collect();
        assert_eq!(urls, ["u0", "u2"]);
        let ids = batch.column(1).as_primitive::<Int64Type>();
        assert_eq!(ids.values().to_vec(), [1, 2]);
        assert_eq!(rows.metrics.records_skipped.value(), 1);
        assert_eq!(rows.metrics.rows_in.value(), 3);
    }

    #[test]
    fn a_bad_record_ends_the_job_with_its_place() {
        let error = rows(OnError::Fail).batches(&records(), 40).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("u1, record 41: it does not decode"),
            "{error}"
        );
    }
}
