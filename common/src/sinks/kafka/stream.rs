//! The sink of a streaming job: hands the rows of an epoch to the thread that has the producer.

use super::epochs::{Epochs, Open};
use crate::error::{Error, Result};
use crate::stream::StreamSink;
use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use std::fmt;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc};

/// Batches that wait for the producer.
const BATCHES_AHEAD: usize = 2;

/// From a stream of rows to a producer's thread.
pub enum ToProducer {
    Rows(RecordBatch),
    /// All rows were sent. Without it, the transaction is aborted.
    Commit,
}

/// Hands the rows over; a producer that has stopped tells by itself why.
pub async fn feed(
    rows: &mut SendableRecordBatchStream,
    sender: mpsc::Sender<ToProducer>,
) -> Result<()> {
    while let Some(batch) = rows.try_next().await? {
        if sender.send(ToProducer::Rows(batch)).await.is_err() {
            return Ok(());
        }
    }
    // As above.
    let _ = sender.send(ToProducer::Commit).await;
    Ok(())
}

/// Writes the epochs of one INSERT, for one generation of its job.
pub struct KafkaStreamSink {
    epochs: Arc<Epochs>,
    /// The thread that works with the producer holds the lock, also when the future that waits for it is dropped.
    open: Arc<Mutex<Option<Open>>>,
}

impl KafkaStreamSink {
    /// A sink that has not begun.
    pub fn new(epochs: Epochs) -> Self {
        Self {
            epochs: Arc::new(epochs),
            open: Arc::default(),
        }
    }
}

impl fmt::Debug for KafkaStreamSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KafkaStreamSink")
            .field(&self.epochs)
            .finish()
    }
}

#[async_trait]
impl StreamSink for KafkaStreamSink {
    async fn begin(&self) -> Result<Option<u64>> {
        let epochs = Arc::clone(&self.epochs);
        let mut slot = Arc::clone(&self.open).lock_owned().await;
        tokio::task::spawn_blocking(move || {
            *slot = None;
            Ok(slot.insert(epochs.open()?).committed())
        })
        .await
        .map_err(broke_down)?
    }

    async fn commit(&self, epoch: u64, mut rows: SendableRecordBatchStream) -> Result<u64> {
        let epochs = Arc::clone(&self.epochs);
        let mut slot = Arc::clone(&self.open).lock_owned().await;
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let schema = rows.schema();
        // If this future is dropped the channel closes without a commit, and the thread aborts and ends.
        let thread =
            tokio::task::spawn_blocking(move || epochs.write(&mut slot, epoch, &schema, receiver));
        let fed = feed(&mut rows, sender).await;
        let written = thread.await.map_err(broke_down)?;
        // The rows' own error explains more than the abort that follows from it.
        fed?;
        written
    }

    fn describe(&self) -> String {
        format!(
            "brokers={}, topic={}, key=[{}], exactly once: a transaction of {} for each epoch",
            self.epochs.connection.brokers,
            self.epochs.topic,
            self.epochs.key.join(", "),
            self.epochs.name
        )
    }
}

fn broke_down(error: tokio::task::JoinError) -> Error {
    Error::internal(format!("a Kafka producer broke down: {error}"))
}
