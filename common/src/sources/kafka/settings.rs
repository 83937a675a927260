//! Which of librdkafka's settings a job may give, and what is filled in where TLS is asked for.
//!
//! The list says what is allowed, because the rest does harm in the process of whoever runs the job: libraries that are
//! loaded (`plugin.library.paths`, `ssl.providers`, `ssl.engine.…`), commands that are run (`sasl.kerberos.kinit.cmd`),
//! addresses that are fetched and files that are read (`sasl.oauthbearer.…`), logs that fill disks (`debug`).

use crate::access::access;
use crate::error::{Error, Result};
use crate::options::nearest;
use crate::secret::Secret;

/// Settings that Essaim needs for itself, and what to write instead.
const RESERVED: [(&str, &str); 9] = [
    ("bootstrap.servers", "name the brokers in LOCATION"),
    ("metadata.broker.list", "name the brokers in LOCATION"),
    ("isolation.level", "use the option isolation_level"),
    ("auto.offset.reset", "use the option starting_offsets"),
    ("enable.auto.commit", "Essaim commits no group offsets"),
    ("enable.partition.eof", "Essaim needs it to end a split"),
    ("transactional.id", "Essaim names its own transactions"),
    ("enable.idempotence", "Essaim's producers are transactional"),
    (
        "sasl.kerberos.kinit.cmd",
        "Kerberos is not supported: use PLAIN or SCRAM",
    ),
];

/// Settings whose value is the path of a file, which must lie where jobs may read.
const FILES: [&str; 5] = [
    CA_FILE,
    "ssl.certificate.location",
    "ssl.crl.location",
    "ssl.key.location",
    "ssl.keystore.location",
];

const CA_FILE: &str = "ssl.ca.location";
const CA_TEXT: &str = "ssl.ca.pem";
const PROTOCOL: &str = "security.protocol";
/// The bundle of the system, wherever its distribution has put it.
const PROBE: &str = "probe";

/// The other settings that a job may give.
const ALLOWED: [&str; 80] = [
    "acks",
    "allow.auto.create.topics",
    "api.version.fallback.ms",
    "api.version.request",
    "api.version.request.timeout.ms",
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "broker.address.ttl",
    "broker.version.fallback",
    "check.crcs",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "delivery.timeout.ms",
    "enable.metrics.push",
    "enable.ssl.certificate.verification",
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.id",
    "linger.ms",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "message.copy.max.bytes",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.max.age.ms",
    "metadata.recovery.rebootstrap.trigger.ms",
    "metadata.recovery.strategy",
    "partitioner",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    PROTOCOL,
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.max.fails",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    CA_TEXT,
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "ssl.sigalgs.list",
    "sticky.partitioning.linger.ms",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.fast.interval.ms",
    "topic.metadata.refresh.interval.ms",
    "transaction.timeout.ms",
];

const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Checks the settings `kafka.…` of a table, on the master and again by each worker for itself.
///
/// # Errors
/// One that no job may give, a mechanism that is not supported, a file that jobs may not read or that is not there.
pub fn check<'a>(settings: impl IntoIterator<Item = (&'a String, &'a Secret)>) -> Result<()> {
    for (name, value) in settings {
        let name = name.as_str();
        if let Some((_, instead)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
            return Err(Error::invalid(format!(
                "option kafka.{name} cannot be set: {instead}"
            )));
        }
        if FILES.contains(&name) {
            check_file(name, value.expose())?;
            continue;
        }
        if !ALLOWED.contains(&name) {
            return Err(Error::invalid(refusal(name)));
        }
        if name.starts_with("sasl.mechanism")
            && !MECHANISMS
                .iter()
                .any(|known| known.eq_ignore_ascii_case(value.expose()))
        {
            return Err(Error::invalid(format!(
                "option kafka.{name}: write {}; other mechanisms are not supported",
                MECHANISMS.join(", ")
            )));
        }
    }
    Ok(())
}

fn refusal(name: &str) -> String {
    let known = ALLOWED.iter().chain(&FILES).copied();
    match nearest(name, known) {
        Some(near) => {
            format!("unknown option kafka.{name}: did you mean kafka.{near}?")
        }
        None => format!(
            "option kafka.{name} cannot be set by a job: the settings of librdkafka that can are listed in the documentation of the Kafka connector"
        ),
    }
}

fn check_file(name: &str, path: &str) -> Result<()> {
    if name == CA_FILE && path == PROBE {
        return Ok(());
    }
    access().check_file(&format!("option kafka.{name}:"), path)?;
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::invalid(format!(
            "option kafka.{name} '{path}': {error}: the master and every worker read this file for themselves"
        ))),
    }
}

/// What `ssl.ca.location` should be where the job names no CA: our OpenSSL does not know where the system keeps its
/// certificates.
pub fn default_ca<'a>(
    mut value: impl FnMut(&str) -> Option<&'a Secret>,
) -> Option<(&'static str, &'static str)> {
    let uses_tls = value(PROTOCOL)
        .is_some_and(|protocol| protocol.expose().to_ascii_lowercase().ends_with("ssl"));
    let named = value(CA_FILE).is_some() || value(CA_TEXT).is_some();
    (uses_tls && !named).then_some((CA_FILE, PROBE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(name: &str, value: &str) -> Result<()> {
        check([(&name.to_owned(), &Secret::new(value))])
    }

    #[test]
    fn the_list_is_sorted_and_names_nothing_twice() {
        assert!(ALLOWED.is_sorted_by(|a, b| a < b));
        assert!(FILES.is_sorted_by(|a, b| a < b));
        assert!(ALLOWED.iter().all(|name| !FILES.contains(name)));
    }

    #[test]
    fn what_would_load_run_fetch_or_read_something_is_refused() {
        for name in [
            "plugin.library.paths",
            "ssl.engine.location",
            "ssl.providers",
            "sasl.kerberos.kinit.cmd",
            "sasl.kerberos.keytab",
            "sasl.oauthbearer.token.endpoint.url",
            "sasl.oauthbearer.assertion.private.key.file",
            "enable.sasl.oauthbearer.unsecure.jwt",
            "https.ca.location",
            "debug",
            "statistics.interval.ms",
            "log.queue",
        ] {
            let message = checked(name, "x").unwrap_err().to_string();
            assert!(message.contains(&format!("kafka.{name}")), "{message}");
        }
        let message = checked("sasl.mechanism", "OAUTHBEARER").unwrap_err();
        assert!(message.to_string().contains("SCRAM-SHA-512"), "{message}");
        assert!(checked("sasl.mechanism", "scram-sha-256").is_ok());
        let message = checked("sasl.pasword", "x").unwrap_err().to_string();
        assert!(
            message.contains("did you mean kafka.sasl.password?"),
            "{message}"
        );
        let message = checked("ssl.key.location", "/no/such.pem").unwrap_err();
        assert!(message.to_string().contains("/no/such.pem"), "{message}");
    }

    #[test]
    fn the_systems_certificates_are_used_where_no_other_are_named() {
        let tls = Secret::new("SASL_SSL");
        let plain = Secret::new("sasl_plaintext");
        let some = Secret::new("x");
        let given = |name: &str, protocol, ca| match name {
            PROTOCOL => protocol,
            CA_TEXT => ca,
            _ => None,
        };
        let probe = Some((CA_FILE, PROBE));
        assert_eq!(default_ca(|name| given(name, Some(&tls), None)), probe);
        assert_eq!(
            default_ca(|name| given(name, Some(&tls), Some(&some))),
            None
        );
        assert_eq!(default_ca(|name| given(name, Some(&plain), None)), None);
        assert_eq!(default_ca(|name| given(name, None, None)), None);
    }
}
