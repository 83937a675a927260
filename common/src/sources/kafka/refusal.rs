//! Why a connection to a broker came to nothing, in words that say what to change.

use crate::error::Error;
use rdkafka::error::RDKafkaErrorCode;
use std::fmt;

/// Librdkafka's account of a connection that failed. It names no password.
#[derive(Debug, Clone)]
pub struct Refusal {
    code: RDKafkaErrorCode,
    text: String,
}

impl Refusal {
    /// What librdkafka said; the text may be empty.
    pub fn new(code: RDKafkaErrorCode, text: &str) -> Self {
        Self {
            code,
            text: text.to_owned(),
        }
    }

    /// Whether the same settings will fail the same way: credentials or certificates, not a broker that is away.
    pub fn is_final(&self) -> bool {
        self.is_about_credentials() || self.text.contains("certificate")
    }

    fn is_about_credentials(&self) -> bool {
        matches!(
            self.code,
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed
        )
    }

    /// The error of something that was to be asked of the brokers.
    pub fn error(&self, what: impl fmt::Display, brokers: &str) -> Error {
        let detail = match self.text.as_str() {
            "" => String::new(),
            text => format!(" ({text})"),
        };
        Error::invalid(if self.is_about_credentials() {
            format!(
                "{what}: the brokers {brokers} refuse the credentials: check kafka.sasl.mechanism, kafka.sasl.username and kafka.sasl.password{detail}"
            )
        } else if self.text.contains("certificate verify failed") {
            format!(
                "{what}: the certificate of the brokers {brokers} is not trusted: name the file of the authority that has issued it with kafka.ssl.ca.location, and the brokers as the certificate names them{detail}"
            )
        } else {
            format!(
                "{what}: the brokers {brokers} and this client do not accept each other's certificates: check kafka.ssl.ca.location, kafka.ssl.certificate.location and kafka.ssl.key.location{detail}"
            )
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text.as_str() {
            "" => write!(f, "{}", self.code),
            text => f.write_str(text),
        }
    }
}
