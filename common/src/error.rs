//! One error for what master and worker do together: what happened, to what, and what to do now.

use crate::sql_types::beyond;
use arrow::datatypes::{DataType, TimeUnit};
use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use tonic::{Code, Status};

/// What kind of trouble it is, and so what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The job is wrong as it stands: not tried again.
    Invalid,
    /// A record does not decode and `on_error` is `fail`: not tried again.
    Data,
    /// A broker, a database or a worker is out of reach: tried again, a bounded number of times.
    Unavailable,
    /// A limit was reached; the message names the setting. Not tried again.
    Exhausted,
    /// Somebody asked for the end.
    Cancelled,
    /// Anything else; tried again, a bounded number of times.
    Internal,
}

/// An error with its kind. The message is for people and carries no secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// The result of everything in this crate that can fail outside a DataFusion trait.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of any kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The job is wrong: name the line, column or option and what to write instead.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// A record does not decode: name its topic, partition and offset, or its table and row.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// Something outside is out of reach: name it.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// A limit was reached: name the setting.
    pub fn exhausted(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Exhausted, message)
    }

    /// Somebody asked for the end.
    pub fn cancelled(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Cancelled, message)
    }

    /// Anything else.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same work may succeed on another worker or a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Internal)
    }

    /// The same error with something more to know behind.
    pub fn with_hint(self, hint: impl std::fmt::Display) -> Self {
        Self {
            kind: self.kind,
            message: format!("{}; {hint}", self.message),
        }
    }

    /// The same error with the place it happened in front.
    pub fn context(self, place: impl std::fmt::Display) -> Self {
        Self {
            kind: self.kind,
            message: format!("{place}: {}", self.message),
        }
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        Self::from(&error)
    }
}

impl From<&DataFusionError> for Error {
    fn from(error: &DataFusionError) -> Self {
        // An error of ours may be wrapped many times over, by DataFusion and by itself.
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(current) = cause {
            if let Some(own) = current.downcast_ref::<Error>() {
                return own.clone();
            }
            if let Some(shared) = current.downcast_ref::<std::sync::Arc<DataFusionError>>() {
                return Self::from(shared.as_ref());
            }
            cause = current.source();
        }
        let kind = match error.find_root() {
            DataFusionError::SQL(..)
            | DataFusionError::Plan(_)
            | DataFusionError::SchemaError(..)
            | DataFusionError::NotImplemented(_)
            | DataFusionError::Configuration(_) => ErrorKind::Invalid,
            // A cast or an arithmetic error fails the same way everywhere.
            DataFusionError::ArrowError(..) | DataFusionError::Execution(_) => ErrorKind::Data,
            DataFusionError::ResourcesExhausted(_) => ErrorKind::Exhausted,
            DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        let message = error.strip_backtrace();
        if let Some(advice) = beyond_nanoseconds(&message) {
            return Self::new(kind, format!("{message}; {advice}"));
        }
        match kind {
            ErrorKind::Exhausted => Self::new(
                kind,
                format!(
                    "{message}. Give the process more with --memory, or split the work finer with SET essaim.splits_per_slot"
                ),
            ),
            _ => Self::new(kind, message),
        }
    }
}

/// What to do about a time that became nanoseconds, in an expression or below it, and does not fit.
fn beyond_nanoseconds(message: &str) -> Option<&'static str> {
    let is_cast = message.contains("Cannot cast ")
        && message.contains(" to Timestamp(ns")
        && message.contains("exceeds the representable");
    is_cast.then(|| beyond(TimeUnit::Nanosecond)).flatten()
}

/// As [`Error::from`], of a cast to `to`: a time that nanoseconds cannot hold is told with its remedy.
pub(crate) fn of_cast(error: &ArrowError, to: &DataType) -> Error {
    match (error, to) {
        (ArrowError::ArithmeticOverflow(_), DataType::Timestamp(unit, _)) => {
            let advice = beyond(*unit).unwrap_or("no TIMESTAMP reaches so far");
            Error::data(format!("a time does not fit: {advice}"))
        }
        _ => Error::data(error.to_string()),
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            ErrorKind::Invalid => Code::InvalidArgument,
            ErrorKind::Data => Code::DataLoss,
            ErrorKind::Unavailable => Code::Unavailable,
            ErrorKind::Exhausted => Code::ResourceExhausted,
            ErrorKind::Cancelled => Code::Cancelled,
            ErrorKind::Internal => Code::Internal,
        };
        // HTTP/2 headers carry the message: keep it within what every peer takes.
        let mut message = error.message;
        if message.len() > 4096 {
            let end = message.floor_char_boundary(4096);
            message.truncate(end);
            message.push('…');
        }
        Status::new(code, message)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let kind = match status.code() {
            Code::InvalidArgument | Code::NotFound | Code::AlreadyExists => ErrorKind::Invalid,
            Code::DataLoss => ErrorKind::Data,
            Code::ResourceExhausted => ErrorKind::Exhausted,
            Code::Cancelled => ErrorKind::Cancelled,
            Code::Unavailable | Code::Unknown | Code::DeadlineExceeded => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        let message = match status.message() {
            "" => format!("{:?}", status.code()),
            message => message.to_owned(),
        };
        Self::new(kind, message)
    }
}
