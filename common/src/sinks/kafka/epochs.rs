//! The producer of one streaming INSERT: a transaction an epoch, which holds its rows and the number of the next one.

use super::json::RowEncoder;
use super::stream::ToProducer;
use super::writer::send;
use crate::error::{Error, ErrorKind, Result};
use crate::sources::kafka::client::{Connection, Context, Deliveries, reason, wrong_setting};
use arrow::datatypes::SchemaRef;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, PurgeConfig};
use rdkafka::topic_partition_list::Offset;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What the offset's metadata says before the generation.
const GENERATION: &str = "essaim generation ";

/// Where the epochs of one INSERT go, and under which names.
#[derive(Debug, Clone)]
pub struct Epochs {
    pub connection: Connection,
    pub topic: String,
    pub key: Vec<String>,
    /// The same for every start of the job: the transactional id, and the group whose offset is the marker.
    pub name: String,
    pub generation: u64,
}

/// A producer that has shut out those before it, and the marker that it found or has written since.
pub struct Open {
    producer: BaseProducer<Deliveries>,
    group: ConsumerGroupMetadata,
    /// The epochs below it are committed.
    next: u64,
}

impl Open {
    /// The last epoch that was committed.
    pub fn committed(&self) -> Option<u64> {
        self.next.checked_sub(1)
    }
}

/// The offset that the group has committed, changed by the same transactions as the rows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Marker {
    /// The epochs below it are committed.
    next: u64,
    /// The highest generation that has begun.
    generation: u64,
}

/// How far a transaction came.
enum Failure {
    /// Its own rows are at fault, or the transaction is beyond use: it can be aborted.
    Abort(Error),
    /// Nothing was decided: the producer is given up.
    Lost(KafkaError),
    /// Asked to commit, the brokers gave no clear answer.
    Unknown(KafkaError),
}

impl Epochs {
    /// Makes a producer, which shuts out those before it and ends their transactions, and notes the generation.
    ///
    /// # Errors
    /// A higher generation has begun (kind `Invalid`); the brokers are out of reach.
    pub fn open(&self) -> Result<Open> {
        // A look before the first step that would shut out a successor; open transactions are not waited for.
        self.refuse_if_superseded(&self.marker("read_uncommitted")?.0)?;
        let producer = self.producer()?;
        producer
            .init_transactions(self.connection.timeout())
            .map_err(|e| self.failed(&e))?;
        let (marker, group) = self.marker("read_committed")?;
        self.refuse_if_superseded(&marker)?;
        let open = Open {
            producer,
            group,
            next: marker.next,
        };
        if marker.generation < self.generation {
            open.producer
                .begin_transaction()
                .and_then(|()| {
                    let deadline = Instant::now() + self.connection.timeout();
                    self.mark(&open, open.next, deadline)?;
                    commit(&open.producer, deadline)
                })
                .map_err(|e| self.failed(&e))?;
        }
        Ok(open)
    }

    /// Writes one epoch, unless it is there already, and leaves in `slot` a producer that is fit for the next one, or
    /// none. Returns the rows written.
    ///
    /// # Errors
    /// As [`crate::stream::StreamSink::commit`].
    pub fn write(
        &self,
        slot: &mut Option<Open>,
        epoch: u64,
        schema: &SchemaRef,
        batches: mpsc::Receiver<ToProducer>,
    ) -> Result<u64> {
        let encoder = RowEncoder::new(schema, &self.key)?;
        let mut open = match slot.take() {
            Some(open) => open,
            None => self.open()?,
        };
        if epoch < open.next {
            *slot = Some(open);
            return Ok(0);
        }
        let mut written = 0;
        match self.transaction(&open, epoch, &encoder, batches, &mut written) {
            Ok(()) => {
                open.next = epoch + 1;
                *slot = Some(open);
                Ok(written)
            }
            Err(Failure::Abort(error)) => {
                self.abort(open);
                Err(error)
            }
            Err(Failure::Lost(error)) => Err(self.lost(&open, &error)),
            Err(Failure::Unknown(error)) => {
                let explained = self.lost(&open, &error);
                if explained.kind() == ErrorKind::Invalid || is_fenced(&open, &error) {
                    return Err(explained);
                }
                drop(open);
                // The new producer ends the transaction one way or the other, and then the marker tells which.
                match self.open() {
                    Ok(open) => {
                        let decided = open.next > epoch;
                        *slot = Some(open);
                        if decided { Ok(written) } else { Err(explained) }
                    }
                    Err(error) if error.kind() == ErrorKind::Invalid => Err(error),
                    Err(_) => Err(explained),
                }
            }
        }
    }

    fn transaction(
        &self,
        open: &Open,
        epoch: u64,
        encoder: &RowEncoder,
        mut batches: mpsc::Receiver<ToProducer>,
        written: &mut u64,
    ) -> Result<(), Failure> {
        let producer = &open.producer;
        producer.begin_transaction().map_err(Failure::Lost)?;
        loop {
            match batches.blocking_recv() {
                Some(ToProducer::Rows(batch)) => {
                    let messages = encoder.encode(&batch).map_err(Failure::Abort)?;
                    let timeout = self.connection.timeout();
                    send(producer, &self.topic, &messages, timeout)
                        .map_err(|e| self.while_sending(e))?;
                    *written += messages.rows as u64;
                }
                Some(ToProducer::Commit) => break,
                None => return Err(Failure::Abort(Error::cancelled("the rows ended early"))),
            }
        }
        let deadline = Instant::now() + self.connection.timeout();
        // librdkafka reports deliveries only to who polls, which a commit does not.
        let flushed = producer.flush(left(deadline));
        if let Some(error) = producer.context().take_failure() {
            return Err(self.while_sending(error));
        }
        flushed
            .and_then(|()| self.mark(open, epoch + 1, deadline))
            .map_err(|e| self.while_sending(e))?;
        commit(producer, deadline).map_err(Failure::Unknown)
    }

    /// An error before the commit.
    fn while_sending(&self, error: KafkaError) -> Failure {
        let too_large = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
        match &error {
            KafkaError::Transaction(inner) if inner.txn_requires_abort() => {
                Failure::Abort(self.failed(&error))
            }
            _ if too_large => Failure::Abort(self.failed(&error)),
            _ => Failure::Lost(error),
        }
    }

    /// Adds the marker to the open transaction.
    fn mark(&self, open: &Open, next: u64, deadline: Instant) -> Result<(), KafkaError> {
        let mut offsets = TopicPartitionList::new();
        {
            let mut partition = offsets.add_partition(&self.topic, 0);
            partition.set_offset(Offset::Offset(i64::try_from(next).unwrap_or(i64::MAX)))?;
            partition.set_metadata(format!("{GENERATION}{}", self.generation));
        }
        again(&open.producer, deadline, |left| {
            open.producer
                .send_offsets_to_transaction(&offsets, &open.group, left)
        })
    }

    /// Ends the transaction for its readers, as well as it can: the next producer would end it too. Then the producer is
    /// given up: librdkafka does not forget the sequence numbers of messages that were purged, and the broker would
    /// refuse those that follow.
    fn abort(&self, open: Open) {
        let deadline = Instant::now() + self.connection.timeout();
        // An abort waits for reports of what is still on its way, which only a flush fetches.
        open.producer
            .purge(PurgeConfig::default().queue().inflight());
        let aborted = open.producer.flush(left(deadline)).and_then(|()| {
            again(&open.producer, deadline, |left| {
                open.producer.abort_transaction(left)
            })
        });
        if let Err(error) = aborted {
            tracing::debug!(topic = %self.topic, %error, "a transaction was not aborted");
        }
    }

    /// The committed marker; with `read_committed` once no transaction is about to change it.
    fn marker(&self, isolation: &str) -> Result<(Marker, ConsumerGroupMetadata)> {
        let consumer: BaseConsumer<Context> = self
            .connection
            .config_over(&[])?
            .set("group.id", &self.name)
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .set("allow.auto.create.topics", "false")
            .create_with_context(Context::default())
            .map_err(|e| wrong_setting(&e))?;
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(&self.topic, 0);
        let found = consumer
            .committed_offsets(wanted, self.connection.timeout())
            .map_err(|e| self.failed(&e))?;
        let mut marker = Marker::default();
        if let Some(partition) = found.find_partition(&self.topic, 0) {
            partition.error().map_err(|e| self.failed(&e))?;
            if let Offset::Offset(offset) = partition.offset() {
                marker.next = u64::try_from(offset).unwrap_or_default();
                marker.generation = partition
                    .metadata()
                    .strip_prefix(GENERATION)
                    .and_then(|number| number.parse().ok())
                    .ok_or_else(|| {
                        Error::invalid(format!(
                            "group {} of topic {} has an offset that is not Essaim's: reset it, the group is this job's alone",
                            self.name, self.topic
                        ))
                    })?;
            }
        }
        let group = consumer.group_metadata().ok_or_else(|| {
            Error::internal(format!("group {} has no metadata in librdkafka", self.name))
        })?;
        Ok((marker, group))
    }

    fn refuse_if_superseded(&self, marker: &Marker) -> Result<()> {
        if marker.generation > self.generation {
            return Err(Error::invalid(format!(
                "topic {}: generation {} of the job is superseded by generation {}, which writes its epochs now",
                self.topic, self.generation, marker.generation
            )));
        }
        Ok(())
    }

    /// The error of a producer that is of no use any more. One that was shut out looks by whom: an older generation that
    /// had not noticed yet that it is one must not end this one.
    fn lost(&self, open: &Open, error: &KafkaError) -> Error {
        if is_fenced(open, error)
            && let Ok((marker, _)) = self.marker("read_uncommitted")
            && let Err(superseded) = self.refuse_if_superseded(&marker)
        {
            return superseded;
        }
        self.failed(error)
    }

    fn producer(&self) -> Result<BaseProducer<Deliveries>> {
        let defaults = [
            // How long readers of committed records wait for a master that died, if nobody succeeds it.
            ("transaction.timeout.ms", "60000"),
            ("queue.buffering.max.messages", "100000"),
            ("queue.buffering.max.kbytes", "32768"),
            ("linger.ms", "5"),
        ];
        self.connection
            .config_over(&defaults)?
            .set("transactional.id", &self.name)
            .create_with_context(Deliveries::default())
            .map_err(|e| wrong_setting(&e))
    }

    fn failed(&self, error: &KafkaError) -> Error {
        let topic = &self.topic;
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => Error::data(format!(
                "topic {topic}: a row makes a message that is too large: raise 'kafka.message.max.bytes' and the topic's max.message.bytes, or make rows smaller"
            )),
            Some(code) if FENCED.contains(&code) => Error::unavailable(format!(
                "topic {topic}: the transaction was taken over, or took longer than 'kafka.transaction.timeout.ms' allows: {}",
                reason(error)
            )),
            _ => self.connection.failed(format!("topic {topic}"), error),
        }
    }
}

const FENCED: [RDKafkaErrorCode; 3] = [
    RDKafkaErrorCode::Fenced,
    RDKafkaErrorCode::InvalidProducerEpoch,
    RDKafkaErrorCode::ProducerFenced,
];

/// Whether another producer of the same name has shut this one out.
fn is_fenced(open: &Open, error: &KafkaError) -> bool {
    let fatal = open.producer.client().fatal_error().map(|(code, _)| code);
    [fatal, error.rdkafka_error_code()]
        .into_iter()
        .flatten()
        .any(|code| FENCED.contains(&code))
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn commit(producer: &BaseProducer<Deliveries>, deadline: Instant) -> Result<(), KafkaError> {
    // After a time-out the commit goes on: asking again tells how it ended.
    again(producer, deadline, |left| producer.commit_transaction(left))
}

/// Repeats a call as long as librdkafka says that this helps and there is time.
fn again(
    producer: &BaseProducer<Deliveries>,
    deadline: Instant,
    call: impl Fn(Duration) -> Result<(), KafkaError>,
) -> Result<(), KafkaError> {
    loop {
        match call(left(deadline)) {
            Err(KafkaError::Transaction(error))
                if error.is_retriable() && !left(deadline).is_zero() =>
            {
                producer.poll(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}
