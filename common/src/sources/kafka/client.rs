//! How librdkafka is set up: brokers, settings handed on, and what its errors mean to us.

use super::refusal::Refusal;
use super::settings;
use crate::error::{Error, ErrorKind, Result};
use crate::options::Options;
use crate::secret::Secret;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{DeliveryResult, ProducerContext};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the first of several calls waits, each twice as long as the one before.
const FIRST_CALL: Duration = Duration::from_millis(500);
/// How long a client is heard between them: it hands over one error at a time, and log lines as long as it is let.
const LISTEN: Duration = Duration::from_millis(20);
/// Errors of a client that are listened to between two calls.
const MAX_NEWS: usize = 100;

/// Whether records of open and aborted transactions are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IsolationLevel {
    ReadCommitted,
    ReadUncommitted,
}

impl IsolationLevel {
    fn name(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// Where the brokers are and how to talk to them. Its `Debug` shows no secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Connection {
    /// `host:port` of one or more brokers, separated by commas.
    pub brokers: String,
    /// librdkafka's settings, as given by the options `kafka.…`.
    pub settings: BTreeMap<String, Hidden>,
    /// The longest wait without any progress, ms.
    pub timeout_ms: u64,
}

/// A setting's value. `sasl.jaas…` and the like do not look like secrets to a pattern: none is shown.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hidden(Secret);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Connection {
    /// Brokers and topics of a location `kafka://host:9092[,host2:9092]/topic[,topic2]`, and the options
    /// `kafka.…` and `request_timeout`.
    ///
    /// # Errors
    /// Another form of location; a setting that Essaim keeps for itself or that librdkafka does not know.
    pub fn new(location: &Secret, options: &mut Options) -> Result<(Self, Vec<String>)> {
        let (brokers, topics) = split_location(location.expose()).ok_or_else(|| {
            options.error(format!(
                "LOCATION '{location}': write 'kafka://host:9092/topic', with commas between several hosts or topics"
            ))
        })?;
        let timeout_ms = options.timeout_ms("request_timeout", 30_000)?;
        let settings: BTreeMap<String, Hidden> = options
            .with_prefix("kafka.")
            .into_iter()
            .map(|(name, value)| (name, Hidden(value)))
            .collect();
        let connection = Self {
            brokers,
            settings,
            timeout_ms,
        };
        // librdkafka checks names and values when a client is made; no connection is tried yet.
        connection
            .metadata_client(IsolationLevel::ReadCommitted)
            .map_err(|e| options.error(e))?;
        Ok((connection, topics))
    }

    /// The longest wait without any progress.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// The settings that all clients share, over defaults that the options `kafka.…` may change.
    ///
    /// # Errors
    /// An option `kafka.…` that no job may give, a file that jobs may not read.
    pub fn config_over(&self, defaults: &[(&str, &str)]) -> Result<ClientConfig> {
        settings::check(self.settings.iter().map(|(name, value)| (name, &value.0)))?;
        let mut config = ClientConfig::new();
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        config
            .set("client.id", "essaim")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Warning);
        let given = |name: &str| self.settings.get(name).map(|value| &value.0);
        if let Some((name, value)) = settings::default_ca(given) {
            config.set(name, value);
        }
        for (name, value) in &self.settings {
            config.set(name, value.0.expose());
        }
        config.set("bootstrap.servers", &self.brokers);
        Ok(config)
    }

    /// A client that asks for topics and offsets and reads nothing. Makes no connection by itself.
    ///
    /// # Errors
    /// A setting that librdkafka refuses.
    pub fn metadata_client(&self, isolation: IsolationLevel) -> Result<BaseConsumer<Context>> {
        self.config_over(&[])?
            .set("isolation.level", isolation.name())
            .set("allow.auto.create.topics", "false")
            .create_with_context(Context::default())
            .map_err(|e| wrong_setting(&e))
    }

    /// A client that reads one partition at a time; a `continuous` one keeps its partition between epochs. Makes no
    /// connection by itself.
    ///
    /// # Errors
    /// A setting that librdkafka refuses.
    pub fn reading_client(
        &self,
        isolation: IsolationLevel,
        continuous: bool,
    ) -> Result<BaseConsumer<Context>> {
        // How long an empty fetch waits at the broker, and so how long the news of a partition's end, or a seek, takes.
        // A consumer that waits for the next epoch should not ask a hundred times a second; it learns of records at
        // once all the same.
        let (wait_ms, queued_kbytes) = if continuous {
            ("100", "4096")
        } else {
            ("10", "16384")
        };
        let defaults = [
            // librdkafka wants a group to assign partitions, though nothing is ever committed to it.
            ("group.id", "essaim"),
            // What a reader holds beyond the batch in hand: a few fetches, whatever the size of messages.
            ("fetch.message.max.bytes", "2097152"),
            ("queued.max.messages.kbytes", queued_kbytes),
            ("queued.min.messages", "100000"),
            // A full queue stops the fetching for so long; librdkafka's second would starve the reader.
            ("fetch.queue.backoff.ms", "5"),
            ("fetch.error.backoff.ms", "100"),
            ("fetch.wait.max.ms", wait_ms),
        ];
        self.config_over(&defaults)?
            .set("isolation.level", isolation.name())
            .set("allow.auto.create.topics", "false")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            // A lost range is an error, never a silent jump.
            .set("auto.offset.reset", "error")
            .create_with_context(Context::default())
            .map_err(|e| wrong_setting(&e))
    }

    /// Asks the brokers something, by calls that each may wait so long. A client that the brokers turn away tries on
    /// without a word: between the calls it is heard, so that wrong credentials are known at once.
    ///
    /// # Errors
    /// The brokers turn us away, or we them; no answer in time; the call's own.
    pub fn ask<T>(
        &self,
        client: &BaseConsumer<Context>,
        what: impl std::fmt::Display,
        mut call: impl FnMut(Duration) -> Result<T, KafkaError>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.timeout();
        let mut patience = FIRST_CALL;
        let mut refusal: Option<Refusal> = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match call(left.min(patience)) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            for _ in 0..MAX_NEWS {
                if client.poll(LISTEN).is_none() {
                    break;
                }
            }
            refusal = client.context().take_refusal().or(refusal);
            let waits_on = refusal.as_ref().is_none_or(|refusal| !refusal.is_final());
            let silent = is_silence(&error);
            if waits_on && silent && left > patience {
                patience *= 2;
                continue;
            }
            let error = match &refusal {
                Some(refusal) if !waits_on => return Err(refusal.error(what, &self.brokers)),
                Some(refusal) => self
                    .failed(what, &error)
                    .with_hint(format!("librdkafka says: {refusal}")),
                None => self.failed(what, &error),
            };
            // A broker that is spoken to without the TLS that it wants hangs up and says nothing.
            let named = self.settings.contains_key("security.protocol");
            return Err(match silent && !named {
                true => error.with_hint(
                    "if they want TLS or a login, say which with kafka.security.protocol",
                ),
                false => error,
            });
        }
    }

    /// What the brokers know of a topic.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn topic(&self, client: &BaseConsumer<Context>, topic: &str) -> Result<Metadata> {
        self.ask(client, format!("topic {topic}"), |patience| {
            client.fetch_metadata(Some(topic), patience)
        })
    }

    /// An error of a call to the brokers about `what`.
    pub fn failed(&self, what: impl std::fmt::Display, error: &KafkaError) -> Error {
        let code = error.rdkafka_error_code();
        let brokers = &self.brokers;
        match code {
            Some(
                code @ (RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SaslAuthenticationFailed),
            ) => Refusal::new(code, "").error(what, brokers),
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
            ) => Error::invalid(format!(
                "{what}: the brokers {brokers} allow it not: {}",
                reason(error)
            )),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Error::invalid(format!(
                    "{what}: the brokers {brokers} have no such topic or partition"
                ))
            }
            _ => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{what}: no answer from the brokers {brokers} within {} ms (option request_timeout): {}",
                    self.timeout_ms,
                    reason(error)
                ),
            ),
        }
    }
}

/// librdkafka's own words for an error, without the settings' values.
pub fn reason(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(code) => code.to_string(),
        None => match error {
            KafkaError::ClientConfig(_, text, name, _) => format!("kafka.{name}: {text}"),
            other => other.to_string(),
        },
    }
}

/// An error in the making of a client.
pub fn wrong_setting(error: &KafkaError) -> Error {
    Error::invalid(format!(
        "librdkafka refuses its settings: {}",
        reason(error)
    ))
}

/// Whether an error only says that no answer has come yet.
fn is_silence(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
        )
    )
}

/// A consumer's context: sends librdkafka's log lines to ours, and keeps why connections fail.
#[derive(Debug, Default)]
pub struct Context {
    refusal: Mutex<Option<Refusal>>,
}

impl Context {
    /// Why a connection failed, of those that failed since the last call: one for good, if there is one, or the last.
    pub fn take_refusal(&self) -> Option<Refusal> {
        self.refusal.lock().take()
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, text: &str) {
        tracing::debug!(target: "librdkafka", "{}: {text}", reason(&error));
        // That all of them are away only follows from what was said of each.
        let code = error
            .rdkafka_error_code()
            .filter(|code| *code != RDKafkaErrorCode::AllBrokersDown);
        if let Some(code) = code {
            let mut last = self.refusal.lock();
            if !last.as_ref().is_some_and(Refusal::is_final) {
                *last = Some(Refusal::new(code, text));
            }
        }
    }
}

impl ConsumerContext for Context {}

/// A producer's context: keeps the first failed delivery.
#[derive(Default)]
pub struct Deliveries {
    failure: Mutex<Option<KafkaError>>,
}

impl Deliveries {
    /// Why the first message that failed since the last call was not delivered.
    pub fn take_failure(&self) -> Option<KafkaError> {
        self.failure.lock().take()
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, text: &str) {
        tracing::debug!(target: "librdkafka", "{}: {text}", reason(&error));
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.failure.lock().get_or_insert_with(|| error.clone());
        }
    }
}

/// One log line of librdkafka. Lost connections are reported by what waits for them, so all go to debug.
fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    tracing::debug!(target: "librdkafka", ?level, "{facility}: {message}");
}

fn split_location(location: &str) -> Option<(String, Vec<String>)> {
    let rest = location.strip_prefix("kafka://")?;
    let (brokers, topics) = rest.split_once('/')?;
    let names = |list: &str| -> Option<Vec<String>> {
        let names: Vec<String> = list.split(',').map(|name| name.trim().to_owned()).collect();
        names.iter().all(|name| !name.is_empty()).then_some(names)
    };
    let brokers = names(brokers)?;
    let mut topics = names(topics)?;
    let good = |name: &String| {
        name.chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    if !topics.iter().all(good) || brokers.iter().any(|broker| broker.contains('@')) {
        return None;
    }
    topics.sort();
    topics.dedup();
    Some((brokers.join(","), topics))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_names_hosts_and_topics() {
        let (brokers, topics) = split_location("kafka://a:1,b:2/t2,t1").unwrap();
        assert_eq!(brokers, "a:1,b:2");
        assert_eq!(topics, ["t1", "t2"]);
        for wrong in [
            "kafka://a:1",
            "kafka:///t",
            "kafka://a/",
            "a:1/t",
            "kafka://a/t/u",
        ] {
            assert_eq!(split_location(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_setting_is_never_shown_and_a_wrong_one_is_named() {
        let given = [("kafka.sasl.passwrd".to_owned(), "hunter2".to_owned())];
        let mut options = Options::new("t", given.iter().map(|(k, v)| (k, v))).unwrap();
        let location = Secret::new("kafka://h:1/t");
        let error = Connection::new(&location, &mut options)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sasl.passwrd") && !error.contains("hunter2"),
            "{error}"
        );
        let given = [("kafka.sasl.password".to_owned(), "hunter2".to_owned())];
        let mut options = Options::new("t", given.iter().map(|(k, v)| (k, v))).unwrap();
        let (connection, _) = Connection::new(&location, &mut options).unwrap();
        assert!(!format!("{connection:?}").contains("hunter2"));
    }
}
