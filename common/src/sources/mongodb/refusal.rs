//! What the driver's and the server's errors mean for a job.

use crate::error::{Error, ErrorKind, Result};
use crate::secret::redact;
use mongodb::bson::Document;
use mongodb::error::{ErrorKind as Driver, WriteFailure};

/// The code of a key that is there already.
pub const DUPLICATE_KEY: i32 = 11000;
/// Stages and commands that a server does not know, FerretDB's among them.
const NOT_IMPLEMENTED: [i32; 4] = [59, 115, 238, 40324];

/// An error of the driver.
pub fn driver_error(error: &mongodb::error::Error, place: &str) -> Error {
    match error.kind.as_ref() {
        Driver::Authentication { message, .. } => Error::invalid(format!(
            "{place} refuses the login: {}. Check user, password and authSource in the LOCATION",
            redact(message)
        )),
        Driver::InvalidArgument { message, .. } | Driver::InvalidTlsConfig { message, .. } => {
            Error::invalid(format!("{place}: {}", redact(message)))
        }
        Driver::Command(refused) => server_error(refused.code, &refused.message, place),
        Driver::Write(WriteFailure::WriteError(refused)) => {
            server_error(refused.code, &refused.message, place)
        }
        Driver::Write(WriteFailure::WriteConcernError(refused)) => {
            not_replicated(&refused.message, place)
        }
        Driver::InsertMany(refused) => {
            let first = refused.write_errors.iter().flatten().next();
            match (first, &refused.write_concern_error) {
                (Some(first), _) => server_error(first.code, &first.message, place),
                (None, Some(concern)) => not_replicated(&concern.message, place),
                (None, None) => {
                    Error::internal(format!("{place}: an insert failed without a reason"))
                }
            }
        }
        Driver::Bson(reason) => Error::internal(format!("{place}: {reason}")),
        Driver::IncompatibleServer { message, .. } => Error::invalid(format!("{place}: {message}")),
        Driver::Io(reason) => Error::unavailable(format!(
            "{place} is out of reach: {reason}. Is it running, and reachable from every worker?"
        )),
        Driver::ServerSelection { message, .. } => Error::unavailable(format!(
            "{place} is out of reach: {}. Is it running, and reachable from every worker?",
            redact(message)
        )),
        other => Error::unavailable(format!("{place}: {}", redact(&other.to_string()))),
    }
}

fn not_replicated(message: &str, place: &str) -> Error {
    Error::unavailable(format!(
        "{place} has not replicated a write in time: {message}"
    ))
}

/// An error that the server answered with, by its code in MongoDB's `error_codes.yml`.
pub fn server_error(code: i32, message: &str, place: &str) -> Error {
    let kind = match code {
        // Duplicate key; validation by the collection's rules; a document that is too large.
        DUPLICATE_KEY | 121 | 10334 | 17280 | 17419 | 17420 => ErrorKind::Data,
        // Elections, shutdowns, lost cursors, time limits, conflicts.
        6
        | 7
        | 43
        | 50
        | 64
        | 89
        | 91
        | 112
        | 134
        | 136
        | 175
        | 189
        | 237
        | 262
        | 290
        | 9001
        | 10058
        | 10107
        | 11600..=11602
        | 13388
        | 13435
        | 13436 => ErrorKind::Unavailable,
        // FerretDB lets PostgreSQL look at the login, at the first command, and calls its refusal an internal error.
        1 if message.contains("SQLSTATE 28") => ErrorKind::Invalid,
        1 | 8 => ErrorKind::Internal,
        _ => ErrorKind::Invalid,
    };
    let hint = match code {
        13 => ". Grant the login the role it lacks: read for a source, readWrite for a sink",
        1 | 18 if kind == ErrorKind::Invalid => {
            ". Check user, password and authSource in the LOCATION"
        }
        _ => "",
    };
    Error::new(
        kind,
        format!("{place}: {} (code {code}){hint}", redact(message)),
    )
}

/// Whether the server does not know what it was asked for.
pub fn is_not_implemented(error: &mongodb::error::Error) -> bool {
    matches!(error.kind.as_ref(), Driver::Command(refused) if NOT_IMPLEMENTED.contains(&refused.code))
}

/// Whether all that was refused are keys that are there already; their positions among the documents.
pub fn duplicates(error: &mongodb::error::Error) -> Option<Vec<usize>> {
    let Driver::InsertMany(refused) = error.kind.as_ref() else {
        return None;
    };
    let refused_writes = refused.write_errors.as_ref()?;
    let only = refused.write_concern_error.is_none()
        && refused_writes
            .iter()
            .all(|write| write.code == DUPLICATE_KEY);
    only.then(|| refused_writes.iter().map(|write| write.index).collect())
}

/// What `update` or `delete` answered: a command succeeds though single writes of it fail.
///
/// # Errors
/// The first write that failed.
pub fn check_writes(answer: &Document, place: &str) -> Result<()> {
    if let Ok(errors) = answer.get_array("writeErrors")
        && let Some(first) = errors.first().and_then(|error| error.as_document())
    {
        let code = first.get_i32("code").unwrap_or(8);
        return Err(server_error(
            code,
            first.get_str("errmsg").unwrap_or(""),
            place,
        ));
    }
    match answer.get_document("writeConcernError") {
        Ok(error) => Err(not_replicated(error.get_str("errmsg").unwrap_or(""), place)),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_what_follows() {
        for (code, kind) in [
            (11000, ErrorKind::Data),
            (13, ErrorKind::Invalid),
            (18, ErrorKind::Invalid),
            (10107, ErrorKind::Unavailable),
            (238, ErrorKind::Invalid),
            (2, ErrorKind::Invalid),
        ] {
            assert_eq!(server_error(code, "x", "here").kind(), kind, "{code}");
        }
    }
}
