//! From a split's records to batches on the channel, without those that are bad or late.

use super::dead_letter::{BadRecord, DeadLetters};
use super::decode::JsonDecoder;
use super::reader::{Format, LateRows, OnError, SplitScan};
use super::records::{METADATA_COLUMNS, Records};
use crate::bad_records::MAX_BAD_RECORDS;
use crate::error::{Error, Result};
use crate::scan::event_times;
use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{filter, filter_record_batch};
use arrow::datatypes::{Fields, Schema};
use rdkafka::message::Message;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A batch is cut at so many bytes of records, however few they are.
const BATCH_BYTES: usize = 4 << 20;

/// Where the reading stands after a batch.
#[derive(PartialEq, Eq)]
pub(super) enum Flow {
    GoOn,
    /// The limit is reached, or nobody listens any more.
    Stop,
}

/// From records to batches on the channel.
pub(super) struct Output<'a> {
    scan: &'a SplitScan,
    sender: &'a mpsc::Sender<RecordBatch>,
    records: Records,
    decoder: Option<JsonDecoder>,
    dead_letters: Option<DeadLetters<'a>>,
    batch_size: usize,
    sent: usize,
}

impl<'a> Output<'a> {
    pub(super) fn new(scan: &'a SplitScan, sender: &'a mpsc::Sender<RecordBatch>) -> Result<Self> {
        let plan = &scan.plan;
        let wants = |names: &[&str]| {
            scan.schema
                .fields()
                .iter()
                .any(|field| names.contains(&field.name().as_str()))
        };
        let batch_size = scan.batch_size.min(plan.limit.unwrap_or(usize::MAX)).max(1);
        let decoder = match plan.format {
            Format::Raw => None,
            Format::Json => {
                let fields: Fields = scan
                    .schema
                    .fields()
                    .iter()
                    .filter(|field| !METADATA_COLUMNS.contains(&field.name().as_str()))
                    .cloned()
                    .collect();
                let schema = Arc::new(Schema::new(fields));
                Some(JsonDecoder::new(schema, plan.timestamp_unit, batch_size)?)
            }
        };
        let late = plan.stream.as_ref().map(|stream| stream.late_rows);
        let wanted = plan.on_error == OnError::DeadLetter || late == Some(LateRows::DeadLetter);
        let dead_letters = plan
            .dead_letters
            .as_ref()
            .filter(|_| wanted)
            .map(|target| DeadLetters::new(target, &plan.connection));
        let whole = dead_letters.is_some();
        Ok(Self {
            scan,
            sender,
            records: Records::new(
                whole || wants(&["_key", "key"]),
                whole || wants(&["_headers"]),
            ),
            decoder,
            dead_letters,
            batch_size,
            sent: 0,
        })
    }

    pub(super) fn push(&mut self, message: &impl Message) -> Result<Flow> {
        self.records.push(message);
        if self.records.len() >= self.batch_size || self.records.bytes() >= BATCH_BYTES {
            return self.flush();
        }
        Ok(Flow::GoOn)
    }

    pub(super) fn flush(&mut self) -> Result<Flow> {
        if self.records.len() == 0 {
            return Ok(Flow::GoOn);
        }
        self.scan.metrics.rows_in.add(self.records.len());
        self.scan.metrics.bytes_in.add(self.records.bytes());
        let mut batch = self.batch()?;
        self.records.clear();
        if let Some(limit) = self.scan.plan.limit {
            batch = batch.slice(0, batch.num_rows().min(limit - self.sent));
        }
        self.sent += batch.num_rows();
        if batch.num_rows() > 0 && self.sender.blocking_send(batch).is_err() {
            return Ok(Flow::Stop);
        }
        Ok(match self.scan.plan.limit {
            Some(limit) if self.sent >= limit => Flow::Stop,
            _ => Flow::GoOn,
        })
    }

    /// The records in hand as rows, without the bad ones.
    fn batch(&mut self) -> Result<RecordBatch> {
        let range = &self.scan.range;
        let internal = |e: arrow::error::ArrowError| Error::internal(e.to_string());
        let decoded = match &mut self.decoder {
            Some(decoder) => Some(decoder.decode(&self.records.payloads)?),
            None => None,
        };
        let bad = decoded.as_ref().map_or(&[][..], |d| d.bad.as_slice());
        if !bad.is_empty() {
            self.treat(bad)?;
        }
        let good = (!bad.is_empty()).then(|| {
            let mut good = vec![true; self.records.len()];
            for (index, _) in bad {
                good[*index] = false;
            }
            BooleanArray::from(good)
        });
        let mut declared = decoded.as_ref().map(|d| d.rows.columns().iter());
        let columns = self
            .scan
            .schema
            .fields()
            .iter()
            .map(|field| -> Result<ArrayRef> {
                let name = field.name().as_str();
                if self.decoder.is_some() && !METADATA_COLUMNS.contains(&name) {
                    // The decoder's columns are the projected ones in the same order.
                    return declared
                        .as_mut()
                        .and_then(Iterator::next)
                        .map(Arc::clone)
                        .ok_or_else(|| Error::internal(format!("column {name} was not decoded")));
                }
                let column = self
                    .records
                    .column(name, &range.topic, range.partition)
                    .map_err(internal)?
                    .ok_or_else(|| Error::internal(format!("no record has a {name}")))?;
                match &good {
                    Some(good) => filter(&column, good).map_err(internal),
                    None => Ok(column),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let rows = decoded
            .as_ref()
            .map_or(self.records.len(), |d| d.rows.num_rows());
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch =
            RecordBatch::try_new_with_options(Arc::clone(&self.scan.schema), columns, &options)
                .map_err(internal)?;
        self.without_late(batch, good.as_ref())
    }

    /// The rows that are not too late; the others go to the dead letters. `good` tells which records the rows are of.
    fn without_late(
        &mut self,
        batch: RecordBatch,
        good: Option<&BooleanArray>,
    ) -> Result<RecordBatch> {
        let stream = self.scan.plan.stream.as_ref();
        let column = stream
            .and_then(|stream| stream.event_time.as_deref())
            .and_then(|name| batch.column_by_name(name));
        let (Some(before), Some(column)) = (self.scan.late_before, column) else {
            return Ok(batch);
        };
        let times = event_times(column);
        let is_late = |time: &Option<i64>| time.is_some_and(|time| time < before);
        if !times.iter().any(is_late) {
            return Ok(batch);
        }
        let rows =
            (0..self.records.len()).filter(|index| good.is_none_or(|good| good.value(*index)));
        let late: Vec<(usize, String)> = rows
            .zip(&times)
            .filter(|(_, time)| is_late(time))
            .map(|(index, time)| {
                let time = time.unwrap_or_default();
                let reason = format!(
                    "late: event time {} is before {}",
                    shown(time),
                    shown(before)
                );
                (index, reason)
            })
            .collect();
        self.put_aside(&late)?;
        self.scan.metrics.late_rows.add(late.len());
        let keep: BooleanArray = times.iter().map(|time| Some(!is_late(time))).collect();
        filter_record_batch(&batch, &keep).map_err(|e| Error::internal(e.to_string()))
    }

    /// Puts records of the batch in hand, by index, among the dead letters.
    fn put_aside(&mut self, which: &[(usize, String)]) -> Result<()> {
        let (scan, records) = (self.scan, &self.records);
        let Some(letters) = &mut self.dead_letters else {
            return Err(Error::internal(
                "a table without dead letters puts records aside",
            ));
        };
        let put = which.iter().map(|(index, reason)| BadRecord {
            topic: &scan.range.topic,
            partition: scan.range.partition,
            offset: records.offset(*index),
            key: records.key(*index),
            value: records.payloads.get(*index),
            headers: records.headers(*index),
            reason,
        });
        letters.put(&put.collect::<Vec<_>>())
    }

    fn treat(&mut self, bad: &[(usize, String)]) -> Result<()> {
        let scan = self.scan;
        if let Some(noted) = &scan.bad_records {
            let range = &scan.range;
            for (index, reason) in bad.iter().take(MAX_BAD_RECORDS) {
                let offset = self.records.offset(*index);
                noted.note(&range.topic, range.partition, offset, reason);
            }
        }
        match scan.plan.on_error {
            OnError::Skip => scan.metrics.records_skipped.add(bad.len()),
            OnError::DeadLetter => {
                self.put_aside(bad)?;
                scan.metrics.records_dead_lettered.add(bad.len());
            }
            OnError::Fail => {
                if let Some((index, reason)) = bad.first() {
                    return Err(Error::data(format!(
                        "{}: the record does not decode: {reason}; correct the columns, or set on_error 'skip' or 'dead_letter'",
                        scan.at(self.records.offset(*index)),
                    )));
                }
            }
        }
        Ok(())
    }
}

/// A time in ms since the epoch, for people.
fn shown(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(
        || format!("{ms} ms"),
        |time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
    )
}
