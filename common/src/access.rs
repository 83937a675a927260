//! What a job may reach of the process that runs it: variables of its environment, and files.

use crate::error::{Error, Result};
use object_store::path::Path as StorePath;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use url::Url;

/// What the names of variables begin with that jobs may use unless the operator says otherwise: those that are set for
/// jobs, and those by which PostgreSQL's and Kafka's own programs take their logins. Whoever may submit a job can send
/// their values anywhere, so credentials of the process itself (`AWS_…`) are not among them.
pub const DEFAULT_ENV_PREFIXES: &str =
    "ESSAIM_VAR_,KAFKA_,PGDATABASE,PGHOST,PGPASSWORD,PGPORT,PGUSER";

/// Our own settings, tokens among them: not for jobs under any list but with this beginning.
const OWN: &str = "ESSAIM_";
const OWN_FOR_JOBS: &str = "ESSAIM_VAR_";

static ACCESS: OnceLock<Access> = OnceLock::new();

/// What jobs may use of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// What the names of variables begin with that `${…}` may name. An empty text admits all.
    variables: Vec<String>,
    /// Where files may be; `None` for anywhere.
    roots: Option<Vec<Root>>,
}

/// A place below which files may be read and written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    /// A folder, links resolved.
    Folder(PathBuf),
    /// A bucket `s3://name`, and the path within.
    Bucket(String, StorePath),
}

impl Default for Access {
    fn default() -> Self {
        Self {
            variables: DEFAULT_ENV_PREFIXES.split(',').map(str::to_owned).collect(),
            roots: None,
        }
    }
}

/// Says once, before any job, what jobs may use of this process.
///
/// # Errors
/// It was said before.
pub fn limit(access: Access) -> Result<()> {
    ACCESS
        .set(access)
        .map_err(|_| Error::internal("what jobs may use was settled before"))
}

/// What jobs may use of this process.
pub fn access() -> &'static Access {
    ACCESS.get_or_init(Access::default)
}

impl Access {
    /// Variables by the beginnings of their names, and files below `roots`: folders that exist, or `s3://bucket/path`.
    /// No root stands for files anywhere, the word `none` for no files at all.
    ///
    /// # Errors
    /// A root that is not there; roots that are set and name nothing, which may mean the one or the other.
    pub fn new(env_prefixes: &[String], roots: &[String]) -> Result<Self> {
        let given = |list: &[String]| -> Vec<String> {
            list.iter()
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
                .collect()
        };
        let (named, roots) = (roots, given(roots));
        if roots.is_empty() && !named.is_empty() {
            return Err(Error::invalid(
                "--file-roots (ESSAIM_FILE_ROOTS, file-roots) is empty: write none for no files at all, or leave it out for files anywhere",
            ));
        }
        let places = roots.iter().filter(|root| *root != "none");
        let places = places.map(|root| Root::new(root)).collect::<Result<_>>()?;
        Ok(Self {
            variables: given(env_prefixes),
            roots: (!roots.is_empty()).then_some(places),
        })
    }

    /// Everything that the process itself can reach: for one who runs his own jobs in his own process.
    pub fn unlimited() -> Self {
        Self {
            variables: vec![String::new()],
            roots: None,
        }
    }

    /// Whether files are confined at all.
    pub fn confines_files(&self) -> bool {
        self.roots.is_some()
    }

    /// The value of a variable that a job names.
    ///
    /// # Errors
    /// It is not for jobs, whether it is set or not; it is not set.
    pub fn variable(&self, name: &str) -> Result<String> {
        if !self.allows_variable(name) {
            return Err(Error::invalid(format!(
                "the variable ${{{name}}} is not for jobs: the master fills in those whose names begin with {} (its setting --env-prefixes)",
                match self.variables.as_slice() {
                    [] => "nothing, so none".to_owned(),
                    some => some.join(", "),
                }
            )));
        }
        std::env::var(name).map_err(|_| {
            Error::invalid(format!(
                "the variable ${{{name}}} is not set in the master's environment"
            ))
        })
    }

    /// Whether a job may name this variable.
    pub fn allows_variable(&self, name: &str) -> bool {
        (!name.starts_with(OWN) || name.starts_with(OWN_FOR_JOBS))
            && self
                .variables
                .iter()
                .any(|prefix| name.starts_with(prefix.as_str()))
    }

    /// Checks a path of the local file system, which need not exist: `..` and links are resolved first.
    ///
    /// # Errors
    /// It lies outside of the roots; the message says what `what` it is.
    pub fn check_file(&self, what: &str, path: impl AsRef<Path>) -> Result<()> {
        let Some(roots) = &self.roots else {
            return Ok(());
        };
        let path = path.as_ref();
        let inside = resolve(path).is_ok_and(|real| {
            roots
                .iter()
                .any(|root| matches!(root, Root::Folder(folder) if real.starts_with(folder)))
        });
        if inside {
            return Ok(());
        }
        Err(outside(what, &path.display().to_string()))
    }

    /// Checks a place in a store, `file://` or `s3://bucket`.
    ///
    /// # Errors
    /// As [`Self::check_file`].
    pub fn check_stored(&self, base: &str, path: &StorePath) -> Result<()> {
        let Some(roots) = &self.roots else {
            return Ok(());
        };
        if base == "file://" {
            return self.check_file("the path", format!("/{path}"));
        }
        let base = base.replacen("s3a://", "s3://", 1);
        let inside = roots.iter().any(|root| {
            matches!(root, Root::Bucket(bucket, below) if *bucket == base && path.prefix_matches(below))
        });
        if inside {
            return Ok(());
        }
        Err(outside("the path", &format!("{base}/{path}")))
    }
}

fn outside(what: &str, path: &str) -> Error {
    Error::invalid(format!(
        "{what} {path} lies outside of what jobs may read and write here: use a place below one of the process's --file-roots, or ask its operator to add one"
    ))
}

impl Root {
    fn new(text: &str) -> Result<Self> {
        let wrong = |why: &dyn std::fmt::Display| {
            Error::invalid(format!(
                "--file-roots {text}: {why}: name a folder that exists, s3://bucket/path, or none"
            ))
        };
        if text.contains("://") && !text.starts_with("file://") {
            let url = Url::parse(text).map_err(|e| wrong(&e))?;
            let ("s3" | "s3a", Some(bucket)) = (url.scheme(), url.host_str()) else {
                return Err(wrong(&"no such store"));
            };
            let path = StorePath::from_url_path(url.path()).map_err(|e| wrong(&e))?;
            return Ok(Self::Bucket(format!("s3://{bucket}"), path));
        }
        let folder = match text.starts_with("file://") {
            true => Url::parse(text)
                .ok()
                .and_then(|url| url.to_file_path().ok())
                .ok_or_else(|| wrong(&"it is no path"))?,
            false => PathBuf::from(text),
        };
        let folder = folder.canonicalize().map_err(|e| wrong(&e))?;
        match folder.is_dir() {
            true => Ok(Self::Folder(folder)),
            false => Err(wrong(&"it is no folder")),
        }
    }
}

/// A path without links and `..`, of which the last parts may not exist yet.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut there: &Path = &path;
    let mut missing: Vec<OsString> = Vec::new();
    loop {
        match there.canonicalize() {
            Ok(mut real) => {
                real.extend(missing.iter().rev());
                return Ok(real);
            }
            // A link that leads nowhere: who writes through it would make a file wherever it points.
            Err(error) if there.is_symlink() => return Err(error),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                // There is no name where the path goes on with `..`, which means nothing before it exists.
                let (Some(name), Some(parent)) = (there.file_name(), there.parent()) else {
                    return Err(error);
                };
                missing.push(name.to_owned());
                there = parent;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;
    use std::os::unix::fs::symlink;

    fn access(prefixes: &[&str], roots: &[&str]) -> Access {
        let owned = |list: &[&str]| {
            list.iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        Access::new(&owned(prefixes), &owned(roots)).unwrap()
    }

    #[test]
    fn jobs_read_only_variables_that_are_meant_for_them() {
        let default = Access::default();
        for name in [
            "PGPASSWORD",
            "PGPASSWORD_ORDERS",
            "KAFKA_PASSWORD",
            "ESSAIM_VAR_X",
        ] {
            assert!(default.allows_variable(name), "{name}");
        }
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "ESSAIM_TOKEN",
            "PGP_PASSPHRASE",
            "PATH",
            "",
        ] {
            assert!(!default.allows_variable(name), "{name}");
        }
        let wide = access(&["ESSAIM_", "AWS_"], &[]);
        assert!(wide.allows_variable("AWS_SECRET_ACCESS_KEY"));
        assert!(!wide.allows_variable("ESSAIM_TOKEN"), "never our own");
        assert!(!access(&[], &[]).allows_variable("PGPASSWORD"));
        let refused = default.variable("HOME").unwrap_err().to_string();
        assert!(
            refused.contains("--env-prefixes") && refused.contains("${HOME}"),
            "{refused}"
        );
    }

    #[test]
    fn a_path_is_judged_by_where_it_leads() {
        let dir = std::env::temp_dir().join(format!("essaim-access-{}", uuid::Uuid::new_v4()));
        let (inside, outside) = (dir.join("in"), dir.join("out"));
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("secret"), "x").unwrap();
        symlink(&outside, inside.join("way_out")).unwrap();
        symlink(outside.join("absent"), inside.join("dangling")).unwrap();
        symlink(inside.join("sub"), outside.join("way_in")).unwrap();
        let access = access(&[], &[inside.to_str().unwrap()]);
        let allowed = |path: &str| access.check_file("the file", dir.join(path)).is_ok();
        for path in [
            "in",
            "in/a.csv",
            "in/new/er/a.csv",
            "in/sub/../b",
            "out/way_in/a",
        ] {
            assert!(allowed(path), "{path}");
        }
        for path in [
            "out/secret",
            "in/../out/secret",
            "in/way_out/secret",
            "in/way_out/new/file",
            "in/dangling",
            "in/sub/../../out/secret",
            "in/absent/../../out/secret",
            "in_and_more",
            "",
        ] {
            assert!(!allowed(path), "{path}");
        }
        assert!(access.check_file("the file", "/etc/passwd").is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn empty_roots_do_not_open_every_file() {
        for empty in ["", " ", ","] {
            let roots: Vec<String> = empty.split(',').map(str::to_owned).collect();
            let message = Access::new(&[], &roots).unwrap_err().to_string();
            assert!(message.contains("write none"), "{message}");
        }
        assert!(!access(&[], &[]).confines_files());
        assert!(access(&[], &["none"]).confines_files());
    }

    #[test]
    fn roots_may_be_in_a_bucket_and_none_shuts_all_out() {
        let path = |text: &str| StorePath::from(text);
        let s3 = access(&[], &["s3://toots/in"]);
        assert!(s3.check_stored("s3://toots", &path("in/a.csv")).is_ok());
        assert!(s3.check_stored("s3a://toots", &path("in")).is_ok());
        assert!(s3.check_stored("s3://toots", &path("inner/a.csv")).is_err());
        assert!(s3.check_stored("s3://other", &path("in/a.csv")).is_err());
        assert!(s3.check_stored("file://", &path("etc/passwd")).is_err());
        let none = access(&[], &["none"]);
        assert!(none.check_stored("file://", &path("tmp/x")).is_err());
        assert!(
            access(&[], &[])
                .check_stored("file://", &path("etc/passwd"))
                .is_ok()
        );
        let wrong = Access::new(&[], &["/no/such/folder".to_owned()]);
        let message = wrong.unwrap_err().to_string();
        assert!(
            message.contains("--file-roots /no/such/folder"),
            "{message}"
        );
    }
}
