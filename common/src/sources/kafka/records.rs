//! Records as they come from the broker, gathered for one batch, and the metadata columns made of them.

use crate::connector::METADATA_KEY;
use arrow::array::{
    ArrayRef, BinaryArray, BinaryBuilder, Int32Array, Int64Array, ListBuilder, StringBuilder,
    StringViewBuilder, StructBuilder, TimestampMillisecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use arrow::error::ArrowError;
use rdkafka::message::{Headers, Message, OwnedHeaders};
use std::collections::HashMap;
use std::sync::Arc;

/// The metadata columns' names, in their order.
pub const METADATA_COLUMNS: [&str; 6] = [
    "_key",
    "_topic",
    "_partition",
    "_offset",
    "_timestamp",
    "_headers",
];

/// The columns that follow the declared ones.
pub fn metadata_fields() -> Vec<Field> {
    let types = [
        DataType::Binary,
        DataType::Utf8View,
        DataType::Int32,
        DataType::Int64,
        DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::List(Arc::new(Field::new_list_field(
            DataType::Struct(header_fields()),
            true,
        ))),
    ];
    let mark = HashMap::from([(METADATA_KEY.to_owned(), "true".to_owned())]);
    METADATA_COLUMNS
        .into_iter()
        .zip(types)
        .map(|(name, data_type)| Field::new(name, data_type, true).with_metadata(mark.clone()))
        .collect()
}

fn header_fields() -> Fields {
    Fields::from(vec![
        Field::new("key", DataType::Utf8, true),
        Field::new("value", DataType::Binary, true),
    ])
}

/// Byte strings one after the other, each of them there or null.
#[derive(Debug, Default)]
pub struct Slices {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    present: Vec<bool>,
}

impl Slices {
    /// Adds one.
    pub fn push(&mut self, slice: Option<&[u8]>) {
        self.bytes.extend_from_slice(slice.unwrap_or_default());
        self.ends.push(self.bytes.len());
        self.present.push(slice.is_some());
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The one at `index`, if it is there.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        if !self.present.get(index).copied().unwrap_or(false) {
            return None;
        }
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[start..self.ends[index]])
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Makes room for others.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.present.clear();
    }

    fn to_array(&self) -> Result<ArrayRef, ArrowError> {
        let mut offsets = Vec::with_capacity(self.ends.len() + 1);
        offsets.push(0);
        for end in &self.ends {
            offsets.push(i32::try_from(*end).map_err(|_| {
                ArrowError::InvalidArgumentError("a batch of more than 2 GiB".to_owned())
            })?);
        }
        Ok(Arc::new(BinaryArray::try_new(
            OffsetBuffer::new(ScalarBuffer::from(offsets)),
            Buffer::from(self.bytes.as_slice()),
            Some(NullBuffer::from(self.present.as_slice())).filter(|nulls| nulls.null_count() > 0),
        )?))
    }
}

/// The records of one batch, all of one partition.
#[derive(Debug, Default)]
pub struct Records {
    with_keys: bool,
    with_headers: bool,
    pub payloads: Slices,
    keys: Slices,
    offsets: Vec<i64>,
    timestamps: Vec<Option<i64>>,
    headers: Vec<Option<OwnedHeaders>>,
}

impl Records {
    /// An empty batch that keeps keys and headers only if they are wanted: they cost a copy each.
    pub fn new(with_keys: bool, with_headers: bool) -> Self {
        Self {
            with_keys,
            with_headers,
            ..Self::default()
        }
    }

    /// Copies a record out of librdkafka's memory.
    pub fn push(&mut self, message: &impl Message) {
        self.payloads.push(message.payload());
        self.offsets.push(message.offset());
        self.timestamps.push(message.timestamp().to_millis());
        if self.with_keys {
            self.keys.push(message.key());
        }
        if self.with_headers {
            let headers = message.headers().map(|headers| {
                let empty = OwnedHeaders::new_with_capacity(headers.count());
                headers.iter().fold(empty, OwnedHeaders::insert)
            });
            self.headers.push(headers);
        }
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Bytes of payload and key.
    pub fn bytes(&self) -> usize {
        self.payloads.bytes() + self.keys.bytes()
    }

    /// The offset of a record.
    pub fn offset(&self, index: usize) -> i64 {
        self.offsets[index]
    }

    /// The key of a record, if keys are kept and it has one.
    pub fn key(&self, index: usize) -> Option<&[u8]> {
        self.keys.get(index)
    }

    /// The headers of a record, if headers are kept and it has any.
    pub fn headers(&self, index: usize) -> Option<&OwnedHeaders> {
        self.headers.get(index).and_then(Option::as_ref)
    }

    /// Makes room for the next batch.
    pub fn clear(&mut self) {
        self.payloads.clear();
        self.keys.clear();
        self.offsets.clear();
        self.timestamps.clear();
        self.headers.clear();
    }

    /// A metadata column, or `key` or `value` of the format raw. `None` for any other name.
    ///
    /// # Errors
    /// More than 2 GiB in a batch.
    pub fn column(
        &self,
        name: &str,
        topic: &str,
        partition: i32,
    ) -> Result<Option<ArrayRef>, ArrowError> {
        Ok(Some(match name {
            "_key" | "key" => self.keys.to_array()?,
            "value" => self.payloads.to_array()?,
            "_topic" => {
                let mut builder =
                    StringViewBuilder::with_capacity(self.len()).with_deduplicate_strings();
                for _ in 0..self.len() {
                    builder.append_value(topic);
                }
                Arc::new(builder.finish())
            }
            "_partition" => Arc::new(Int32Array::from_value(partition, self.len())),
            "_offset" => Arc::new(Int64Array::from(self.offsets.clone())),
            "_timestamp" => Arc::new(TimestampMillisecondArray::from(self.timestamps.clone())),
            "_headers" => self.headers_column(),
            _ => return Ok(None),
        }))
    }

    fn headers_column(&self) -> ArrayRef {
        let entry = StructBuilder::new(
            header_fields(),
            vec![
                Box::new(StringBuilder::new()),
                Box::new(BinaryBuilder::new()),
            ],
        );
        let mut list = ListBuilder::new(entry);
        for headers in &self.headers {
            if let Some(headers) = headers {
                for header in headers.iter() {
                    let entry = list.values();
                    if let Some(key) = entry.field_builder::<StringBuilder>(0) {
                        key.append_value(header.key);
                    }
                    if let Some(value) = entry.field_builder::<BinaryBuilder>(1) {
                        value.append_option(header.value);
                    }
                    entry.append(true);
                }
            }
            list.append(headers.is_some());
        }
        Arc::new(list.finish())
    }
}
