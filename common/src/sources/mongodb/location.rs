//! A LOCATION: its form, its parameters, and files that jobs may read.

use crate::access::access;
use crate::error::{Error, Result};
use crate::secret::Secret;
use mongodb::options::{AuthMechanism, ConnectionString, HostInfo, Tls};

const MECHANISMS: &str = "SCRAM-SHA-256, SCRAM-SHA-1, PLAIN or MONGODB-X509";

/// Where a LOCATION leads, without its login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `host:port`, joined by commas; for `mongodb+srv://` the name that is looked up.
    pub hosts: String,
    pub database: String,
}

/// Checks a LOCATION. Asks nobody.
///
/// # Errors
/// A text of another form, no database in it, a way to log in or a file that no job may use here.
pub fn check(location: &Secret) -> Result<Place> {
    let text = location.expose();
    // The parser's own message could quote a part of the password.
    let wrong = |why: &str| {
        Error::invalid(format!(
            "the LOCATION of a MONGODB table is 'mongodb://HOST:PORT/DATABASE?parameters'{why}, with USER:PASSWORD@ before HOST for a login; \
             characters such as @ / : % within the password are written %40 %2F %3A %25"
        ))
    };
    if !["mongodb://", "mongodb+srv://"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
    {
        return Err(wrong(""));
    }
    let parsed = ConnectionString::parse(text).map_err(|_| match text.contains('?') {
        true => wrong(&format!(
            ", with the parameters of a MongoDB connection string (authMechanism: {MECHANISMS})"
        )),
        false => wrong(""),
    })?;
    let database = parsed
        .default_database
        .filter(|database| !database.is_empty())
        .ok_or_else(|| {
            wrong(", and this one names no database: write it behind the host, and authSource=admin if the login is kept there")
        })?;
    let hosts = match parsed.host_info {
        HostInfo::HostIdentifiers(hosts) => {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            hosts.join(",")
        }
        HostInfo::DnsRecord(name) => name,
        _ => return Err(wrong("")),
    };
    let mechanism = parsed.credential.and_then(|login| login.mechanism);
    // The others ask services of the process's surroundings for a login that is not the job's.
    if !matches!(
        mechanism,
        None | Some(
            AuthMechanism::ScramSha1
                | AuthMechanism::ScramSha256
                | AuthMechanism::Plain
                | AuthMechanism::MongoDbX509
        )
    ) {
        return Err(Error::invalid(format!(
            "authMechanism in the LOCATION: write {MECHANISMS}"
        )));
    }
    if let Some(Tls::Enabled(tls)) = parsed.tls {
        let files = [
            ("tlsCAFile", tls.ca_file_path),
            ("tlsCertificateKeyFile", tls.cert_key_file_path),
        ];
        for (name, path) in files {
            let Some(path) = path else { continue };
            access().check_file(&format!("{name} in the LOCATION:"), &path)?;
            std::fs::metadata(&path).map_err(|e| {
                Error::invalid(format!(
                    "{name} in the LOCATION: {}: {e}: the master and every worker read this file for themselves",
                    path.display()
                ))
            })?;
        }
    }
    Ok(Place { hosts, database })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;

    #[test]
    fn a_location_names_hosts_and_database() {
        let place = check(&Secret::new(
            "mongodb://u:p%40w@a:1,b/weather?authSource=admin",
        ));
        let place = place.unwrap();
        assert_eq!(place.hosts, "a:1,b:27017");
        assert_eq!(place.database, "weather");
    }

    #[test]
    fn a_wrong_location_says_what_is_missing_and_shows_no_password() {
        for (location, part) in [
            ("postgres://u:hunter2@h/db", "mongodb://HOST:PORT/DATABASE"),
            ("mongodb://u:hunter2@h", "names no database"),
            (
                "mongodb://u:hunter2@h/?authSource=admin",
                "names no database",
            ),
            ("mongodb://u:hun@ter2@h/db", "%40"),
            ("mongodb://u:hunter2@h/db?tls=maybe", "parameters"),
            (
                "mongodb://u:hunter2@h/db?authMechanism=MONGODB-AWS",
                "SCRAM-SHA-256",
            ),
            (
                "mongodb://h/db?tls=true&tlsCAFile=/no/such.pem",
                "/no/such.pem",
            ),
        ] {
            let message = check(&Secret::new(location)).unwrap_err().to_string();
            assert!(message.contains(part), "{location}: {message}");
            assert!(!message.contains("ter2"), "{message}");
        }
    }
}
