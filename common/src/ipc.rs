//! Record batches as an Arrow IPC stream in chunks, for every hop between processes.

use crate::error::{Error, Result};
use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::{StreamDecoder, StreamReader};
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use essaim_proto::CHUNK_BYTES;
use futures::{Stream, StreamExt};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn broken(error: &ArrowError) -> Error {
    Error::internal(format!("an Arrow IPC stream is broken: {error}"))
}

/// Decodes. Where lengths and offsets in the bytes contradict each other, Arrow panics instead of returning an error;
/// whoever is told of one must not go on with the decoder.
fn unless_it_panics<T>(decode: impl FnOnce() -> Result<T, ArrowError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(decoded) => decoded.map_err(|e| broken(&e)),
        Err(_) => Err(Error::internal(
            "an Arrow IPC stream is broken: its lengths contradict each other",
        )),
    }
}

/// A schema alone, as the stream of no batches.
///
/// # Errors
/// A type that Arrow IPC does not know.
pub fn encode_schema(schema: &SchemaRef) -> Result<Vec<u8>> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema).map_err(|e| broken(&e))?;
    writer.finish().map_err(|e| broken(&e))?;
    writer.into_inner().map_err(|e| broken(&e))
}

/// What [`encode_schema`] wrote.
///
/// # Errors
/// Bytes that are none.
pub fn decode_schema(bytes: &[u8]) -> Result<SchemaRef> {
    // Arrow makes room for as much as the message says that it has, before it looks whether that is there.
    let length = match bytes.split_first_chunk::<4>() {
        Some((&[0xff, 0xff, 0xff, 0xff], rest)) => rest.split_first_chunk::<4>(),
        legacy => legacy,
    };
    if length.is_some_and(|(length, rest)| u32::from_le_bytes(*length) as usize > rest.len()) {
        return Err(Error::internal(
            "an Arrow IPC schema is broken: it is longer than its message",
        ));
    }
    unless_it_panics(|| StreamReader::try_new(bytes, None).map(|reader| reader.schema()))
}

/// Writes batches of one schema into chunks of at most [`CHUNK_BYTES`].
pub struct Encoder {
    writer: StreamWriter<Vec<u8>>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    /// Begins a stream.
    ///
    /// # Errors
    /// A type that Arrow IPC does not know.
    pub fn new(schema: &SchemaRef) -> Result<Self> {
        let options = IpcWriteOptions::default();
        let writer = StreamWriter::try_new_with_options(Vec::new(), schema, options)
            .map_err(|e| broken(&e))?;
        Ok(Self { writer })
    }

    /// The chunks of one more batch (and of the schema, the first time).
    ///
    /// # Errors
    /// A batch of another schema.
    pub fn encode(&mut self, batch: &RecordBatch) -> Result<Vec<Bytes>> {
        self.writer.write(batch).map_err(|e| broken(&e))?;
        Ok(self.take())
    }

    /// The chunks that end the stream.
    ///
    /// # Errors
    /// None that can happen in memory.
    pub fn finish(mut self) -> Result<Vec<Bytes>> {
        self.writer.finish().map_err(|e| broken(&e))?;
        Ok(self.take())
    }

    fn take(&mut self) -> Vec<Bytes> {
        let mut written = Bytes::from(std::mem::take(self.writer.get_mut()));
        let mut chunks = Vec::with_capacity(written.len().div_ceil(CHUNK_BYTES));
        while written.len() > CHUNK_BYTES {
            chunks.push(written.split_to(CHUNK_BYTES));
        }
        if !written.is_empty() {
            chunks.push(written);
        }
        chunks
    }
}

/// Reads batches back from chunks that end anywhere.
#[derive(Debug, Default)]
pub struct Decoder {
    decoder: StreamDecoder,
}

impl Decoder {
    /// The batches that are complete with `chunk`.
    ///
    /// # Errors
    /// Bytes that are no Arrow IPC stream.
    pub fn decode(&mut self, chunk: Bytes) -> Result<Vec<RecordBatch>> {
        let mut buffer = Buffer::from(chunk);
        let mut batches = Vec::new();
        while !buffer.is_empty() {
            if let Some(batch) = unless_it_panics(|| self.decoder.decode(&mut buffer))? {
                batches.push(batch);
            }
        }
        Ok(batches)
    }

    /// The schema, once its message is complete.
    pub fn schema(&self) -> Option<SchemaRef> {
        self.decoder.schema()
    }
}

/// Batches as chunks. Ends after the first error.
pub fn encode_stream(
    rows: SendableRecordBatchStream,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    enum State {
        Start(SendableRecordBatchStream),
        Running(SendableRecordBatchStream, Box<Encoder>),
        Done,
    }
    let chunks = |chunks: Result<Vec<Bytes>>| match chunks {
        Ok(chunks) => chunks.into_iter().map(Ok).collect::<Vec<_>>(),
        Err(error) => vec![Err(error)],
    };
    futures::stream::unfold(State::Start(rows), move |state| async move {
        let (mut rows, mut encoder) = match state {
            State::Start(rows) => match Encoder::new(&rows.schema()) {
                Ok(encoder) => (rows, Box::new(encoder)),
                Err(error) => return Some((vec![Err(error)], State::Done)),
            },
            State::Running(rows, encoder) => (rows, encoder),
            State::Done => return None,
        };
        match rows.next().await {
            Some(Ok(batch)) => match encoder.encode(&batch) {
                Ok(done) => Some((chunks(Ok(done)), State::Running(rows, encoder))),
                Err(error) => Some((vec![Err(error)], State::Done)),
            },
            Some(Err(error)) => Some((vec![Err(Error::from(error))], State::Done)),
            None => Some((chunks(encoder.finish()), State::Done)),
        }
    })
    .flat_map(futures::stream::iter)
}

/// Chunks as batches of a known schema.
pub fn decode_stream<S>(schema: SchemaRef, chunks: S) -> SendableRecordBatchStream
where
    S: Stream<Item = Result<Bytes>> + Send + Unpin + 'static,
{
    let state = (chunks, Decoder::default(), VecDeque::new());
    let batches =
        futures::stream::try_unfold(state, |(mut chunks, mut decoder, mut ready)| async {
            loop {
                if let Some(batch) = ready.pop_front() {
                    return Ok(Some((batch, (chunks, decoder, ready))));
                }
                match chunks.next().await {
                    Some(chunk) => ready.extend(decoder.decode(chunk?)?),
                    None => return Ok(None),
                }
            }
        });
    Box::pin(RecordBatchStreamAdapter::new(schema, Box::pin(batches)))
}
