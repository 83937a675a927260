//! What a task sent, kept until it is read: in memory while there is room, in a temporary file otherwise.
//!
//! Nothing of a task is read before the task has ended, so an attempt that dies half way leaves no trace.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::StreamWriter;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::spill_file::{SpillFile, SpillWriter};
use datafusion::physical_plan::spill::get_record_batch_memory_size;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use essaim_common::{Error, Result, ipc};
use futures::StreamExt;
use std::sync::Arc;

type Writer = StreamWriter<Box<dyn SpillWriter>>;

/// A spool that is being written.
pub(crate) struct SpoolWriter {
    schema: SchemaRef,
    runtime: Arc<RuntimeEnv>,
    reservation: MemoryReservation,
    batches: Vec<RecordBatch>,
    file: Option<(Arc<dyn SpillFile>, Writer)>,
}

/// A spool that is complete.
pub(crate) struct Spool {
    schema: SchemaRef,
    reservation: MemoryReservation,
    batches: Vec<RecordBatch>,
    file: Option<Arc<dyn SpillFile>>,
}

fn trouble(error: impl std::fmt::Display) -> Error {
    Error::unavailable(format!(
        "cannot keep task results in a temporary file: {error}"
    ))
}

impl SpoolWriter {
    pub(crate) fn new(schema: SchemaRef, runtime: Arc<RuntimeEnv>) -> Self {
        let reservation = MemoryConsumer::new("task results")
            .with_can_spill(true)
            .register(&runtime.memory_pool);
        Self {
            schema,
            runtime,
            reservation,
            batches: Vec::new(),
            file: None,
        }
    }

    /// Keeps one more batch.
    pub(crate) async fn push(&mut self, batch: RecordBatch) -> Result<()> {
        let (file, mut writer) = match self.file.take() {
            Some(open) => open,
            None => {
                let size = get_record_batch_memory_size(&batch);
                if self.reservation.try_grow(size).is_ok() {
                    self.batches.push(batch);
                    return Ok(());
                }
                let file = self
                    .runtime
                    .disk_manager
                    .create_tmp_file("task results")
                    .map_err(trouble)?;
                let writer = file.open_writer().map_err(trouble)?;
                let writer = StreamWriter::try_new(writer, &self.schema).map_err(trouble)?;
                (file, writer)
            }
        };
        let mut kept = std::mem::take(&mut self.batches);
        kept.push(batch);
        // Files block: not on the runtime's own threads.
        let writer = tokio::task::spawn_blocking(move || {
            for batch in &kept {
                writer.write(batch)?;
            }
            Ok::<_, arrow::error::ArrowError>(writer)
        })
        .await
        .map_err(trouble)?
        .map_err(trouble)?;
        self.reservation.free();
        self.file = Some((file, writer));
        Ok(())
    }

    /// Ends the spool.
    pub(crate) fn finish(self) -> Result<Spool> {
        let file = match self.file {
            Some((file, mut writer)) => {
                writer.finish().map_err(trouble)?;
                writer.get_mut().finish().map_err(trouble)?;
                Some(file)
            }
            None => None,
        };
        Ok(Spool {
            schema: self.schema,
            reservation: self.reservation,
            batches: self.batches,
            file,
        })
    }
}

impl Spool {
    /// The batches, once.
    pub(crate) fn read(self) -> SendableRecordBatchStream {
        let Some(file) = self.file else {
            let reservation = self.reservation;
            let batches = self.batches.into_iter().map(move |batch| {
                reservation.shrink(get_record_batch_memory_size(&batch).min(reservation.size()));
                Ok(batch)
            });
            return Box::pin(RecordBatchStreamAdapter::new(
                self.schema,
                futures::stream::iter(batches),
            ));
        };
        match file.read_stream() {
            // The file is removed when its last owner goes: the stream is one.
            Ok(chunks) => ipc::decode_stream(
                self.schema,
                chunks.map(move |chunk| {
                    let _ = &file;
                    chunk.map_err(trouble)
                }),
            ),
            Err(error) => {
                let error = DataFusionError::from(trouble(error));
                Box::pin(RecordBatchStreamAdapter::new(
                    self.schema,
                    futures::stream::once(async { Err(error) }),
                ))
            }
        }
    }
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spool({} batches)", self.batches.len())
    }
}
