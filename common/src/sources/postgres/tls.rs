//! A LOCATION as options of the driver: its parameters checked, its certificates where jobs may read, nothing of the
//! process's own login given away; and what it means when TLS fails.

use crate::access::{Access, access};
use crate::error::{Error, Result};
use crate::options::nearest;
use crate::secret::Secret;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use std::fmt::Display;
use std::str::FromStr;
use url::Url;

/// The parameters that the driver knows. It passes over others, a mistyped `sslmode` among them.
const PARAMETERS: [&str; 17] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

/// What the driver takes for the certificate itself rather than its file.
const PEM: &str = "-----BEGIN";

/// How to connect to `postgres://USER:PASSWORD@HOST:PORT/DATABASE?parameters`.
///
/// # Errors
/// A text of another form, an unknown parameter, a file that jobs may not read or that is not there, `sslrootcert` where
/// nothing is checked against it.
pub fn connect_options(location: &Secret) -> Result<PgConnectOptions> {
    options_for(location, access())
}

fn options_for(location: &Secret, access: &Access) -> Result<PgConnectOptions> {
    // The parsers' own messages could quote a part of the password.
    let text = location.expose();
    let wrong = || {
        let without = match text.starts_with("jdbc:") {
            true => ", without jdbc: in front",
            false => "",
        };
        // Not written as one URL: a filter for passwords would take the template's own.
        Error::invalid(format!(
            "the LOCATION of a POSTGRES table is 'postgres://HOST:PORT/DATABASE'{without}, with USER:PASSWORD@ before HOST for a login; \
             characters such as @ / : % within the password are written %40 %2F %3A %25"
        ))
    };
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
    {
        return Err(wrong());
    }
    let url = Url::parse(text).map_err(|_| wrong())?;
    let mut parameters = Parameters::default();
    for (name, value) in url.query_pairs() {
        parameters.take(&name, &value, access)?;
    }
    let mut options = PgConnectOptions::from_str(text).map_err(|_| match parameters.mode {
        Some(_) => Error::invalid(
            "the LOCATION of a POSTGRES table is no PostgreSQL URL: check its parameters; sslmode is one of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        None => wrong(),
    })?;
    options = parameters.apply(options)?;
    // The driver would send the password of the process itself to whatever server a job names. That of ~/.pgpass goes to
    // its own server only.
    let named = url.password().is_some() || parameters.password;
    if !named && std::env::var_os("PGPASSWORD").is_some() {
        options = options.password("");
    }
    Ok(options
        .application_name("essaim")
        .disable_statement_logging())
}

/// What the parameters of a LOCATION say about TLS.
#[derive(Debug, Default)]
struct Parameters {
    mode: Option<String>,
    root: bool,
    password: bool,
}

impl Parameters {
    fn take(&mut self, name: &str, value: &str, access: &Access) -> Result<()> {
        match name {
            "sslmode" | "ssl-mode" => self.mode = Some(value.to_owned()),
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => {
                self.root = true;
                check_file(name, value, access)?;
            }
            "sslcert" | "ssl-cert" | "sslkey" | "ssl-key" => check_file(name, value, access)?,
            "password" => self.password = true,
            "statement-cache-capacity" => {}
            name if PARAMETERS.contains(&name) || name.starts_with("options[") => {}
            name => {
                let hint = match nearest(name, PARAMETERS) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("known are {}", PARAMETERS.join(", ")),
                };
                return Err(Error::invalid(format!(
                    "the LOCATION has the unknown parameter {name}: {hint}"
                )));
            }
        }
        Ok(())
    }

    fn apply(&self, options: PgConnectOptions) -> Result<PgConnectOptions> {
        if !self.root {
            return Ok(options);
        }
        match options.get_ssl_mode() {
            PgSslMode::VerifyCa | PgSslMode::VerifyFull => Ok(options),
            // As libpq does: who names an authority wants it to have issued the certificate.
            PgSslMode::Require => Ok(options.ssl_mode(PgSslMode::VerifyCa)),
            _ => Err(Error::invalid(
                "the LOCATION names sslrootcert, but its sslmode checks nothing against it: add sslmode=verify-full",
            )),
        }
    }
}

fn check_file(name: &str, value: &str, access: &Access) -> Result<()> {
    if value.trim_start().starts_with(PEM) {
        return Ok(());
    }
    access.check_file(&format!("parameter {name} of the LOCATION:"), value)?;
    match std::fs::metadata(value) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::invalid(format!(
            "parameter {name} of the LOCATION, '{value}': {error}: the master and every worker read this file for themselves"
        ))),
    }
}

/// Whether a connection failed because the server has no TLS, or a certificate is not accepted.
pub fn is_refusal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.to_string().contains("certificate"),
        _ => false,
    }
}

/// The error of such a connection.
pub fn refused(error: &sqlx::Error, place: impl Display) -> Error {
    let error = error.to_string();
    let hint = if error.contains("UnknownIssuer") {
        "name the file of the authority that has issued it with sslrootcert"
    } else if error.contains("not valid for name") {
        "connect by a name that it is issued for, or take sslmode=verify-ca if the server's name need not be checked"
    } else if error.contains("does not support TLS") {
        "turn TLS on there, or take another sslmode"
    } else {
        "check sslmode, sslrootcert, sslcert and sslkey"
    };
    Error::invalid(format!("{place}: no secure connection: {error}: {hint}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;

    fn options(location: &str) -> Result<PgConnectOptions> {
        options_for(&Secret::new(location), &Access::default())
    }

    fn refusal(location: &str) -> String {
        options(location).unwrap_err().to_string()
    }

    #[test]
    fn a_mistyped_parameter_does_not_turn_checks_off() {
        let message = refusal("postgres://u:hunter2@h/db?sslmod=verify-full");
        assert!(message.contains("did you mean sslmode?"), "{message}");
        let message = refusal("postgres://u:hunter2@h/db?sslmode=verify");
        assert!(message.contains("verify-full"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
        assert!(options("postgres://u@h/db?options[search_path]=x&application_name=y").is_ok());
    }

    #[test]
    fn an_authority_that_is_named_is_asked() {
        let file = std::env::current_exe().unwrap();
        let with = |mode: &str| {
            options(&format!(
                "postgres://u@h/db?{mode}sslrootcert={}",
                file.display()
            ))
        };
        let mode = |mode| format!("{:?}", with(mode).unwrap().get_ssl_mode());
        assert_eq!(mode("sslmode=require&"), "VerifyCa");
        assert_eq!(mode("sslmode=verify-full&"), "VerifyFull");
        let message = with("sslmode=prefer&").unwrap_err().to_string();
        assert!(message.contains("add sslmode=verify-full"), "{message}");
    }

    #[test]
    fn certificates_are_read_only_where_jobs_may_read() {
        let confined = Access::new(&[], &["none".to_owned()]).unwrap();
        let location = Secret::new("postgres://u@h/db?sslmode=require&sslkey=/etc/passwd");
        let message = options_for(&location, &confined).unwrap_err().to_string();
        assert!(
            message.contains("sslkey") && message.contains("--file-roots"),
            "{message}"
        );
        let message = refusal("postgres://u@h/db?sslcert=/no/such.pem");
        assert!(message.contains("/no/such.pem"), "{message}");
    }
}
