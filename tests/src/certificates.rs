//! Certificates for one test: an authority, a server and a client of it, and an authority that nobody knows.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The user whose name the client's certificate bears.
pub const USER: &str = "essaim_cert";

const CONFIG: &str = "\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = CA:FALSE
subjectAltName = IP:127.0.0.1
extendedKeyUsage = serverAuth
[client]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
";

/// PEM files in a folder of their own.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// Makes them. The server's certificate is for the address 127.0.0.1 and no name.
    ///
    /// # Errors
    /// The program `openssl` is not there or fails.
    pub fn make() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("essaim-certs").tempdir()?;
        std::fs::write(dir.path().join("openssl.cnf"), CONFIG)?;
        let made = Self { dir };
        made.sign("ca", "authority", "essaim test", None)?;
        made.sign("other_ca", "authority", "somebody else", None)?;
        made.sign("server", "server", "server", Some("ca"))?;
        made.sign("client", "client", USER, Some("ca"))?;
        Ok(made)
    }

    fn sign(&self, name: &str, kind: &str, subject: &str, by: Option<&str>) -> Result<()> {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
            .args(["-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-config", "openssl.cnf", "-extensions", kind])
            .args(["-subj", &format!("/CN={subject}")])
            .args(["-keyout", &format!("{name}.key")])
            .args(["-out", &format!("{name}.pem")])
            .current_dir(self.dir.path());
        if let Some(by) = by {
            openssl.args(["-CA", &format!("{by}.pem")]);
            openssl.args(["-CAkey", &format!("{by}.key")]);
        }
        let output = openssl.output().context("openssl is not installed")?;
        ensure!(
            output.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// The folder that they are in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The certificate of `ca`, `other_ca`, `server` or `client`.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.pem"))
    }

    /// Its private key.
    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.key"))
    }
}
