//! `essaim config`: every setting that is in force, and where it comes from.

use super::file::File;
use super::{Role, one_line, settings, wrong_variable};
use crate::client::{Failure, MasterAddress};
use crate::serve::{MasterArgs, WorkerArgs};
use anyhow::Result;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use essaim_common::secret::redact;
use serde_json::{Map, Value, json};
use std::io::Write;

/// Settings that name a file, and the variables that hold its text instead.
const TEXTS: [(&str, &str); 2] = [("tokens", "ESSAIM_TOKENS"), ("token-file", "ESSAIM_TOKEN")];
/// Words that end the name of a setting whose value is a secret.
const SECRETS: [&str; 5] = ["token", "tokens", "password", "secret", "secrets"];

#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    of: Option<Of>,
    #[arg(skip)]
    found: Vec<(Role, Vec<Setting>)>,
    #[arg(skip)]
    file: Option<String>,
}

/// Flags after the role are looked at as the role itself would.
#[derive(Debug, clap::Subcommand)]
enum Of {
    /// What `essaim master` would run with.
    Master(MasterArgs),
    /// What `essaim worker` would run with.
    Worker(WorkerArgs),
    /// How client commands reach the master.
    Client(MasterAddress),
}

/// One setting.
#[derive(Debug)]
struct Setting {
    name: String,
    /// Redacted; `None` if it is not set and has no default.
    value: Option<String>,
    origin: Origin,
}

/// Where a value comes from.
#[derive(Debug)]
enum Origin {
    Default,
    File { line: usize },
    Variable(String),
    Flag,
}

impl ConfigArgs {
    /// Finds what is in force: for the role that is named, or for all of them.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a variable that holds a wrong value.
    pub fn look_up(&mut self, matches: &ArgMatches, file: Option<&File>) -> Result<(), Failure> {
        self.file = file.map(|file| file.path().display().to_string());
        self.found = match matches.subcommand() {
            Some((name, matches)) => Role::ALL
                .into_iter()
                .filter(|role| role.name() == name)
                .map(|role| (role, in_force(&command(role, file), matches, role, file)))
                .collect(),
            None => Role::ALL
                .into_iter()
                .map(|role| {
                    let command = command(role, file);
                    let matches = command.clone().try_get_matches_from([role.name()]);
                    let matches = matches.map_err(|error| {
                        wrong_variable(&error).unwrap_or_else(|| Failure::Usage(one_line(&error)))
                    })?;
                    Ok((role, in_force(&command, &matches, role, file)))
                })
                .collect::<Result<_, Failure>>()?,
        };
        Ok(())
    }
}

fn command(role: Role, file: Option<&File>) -> Command {
    match file {
        Some(file) => file.put_into(role.command(), role),
        None => role.command(),
    }
}

fn in_force(
    command: &Command,
    matches: &ArgMatches,
    role: Role,
    file: Option<&File>,
) -> Vec<Setting> {
    settings(command)
        .filter_map(|arg| {
            let name = arg.get_long()?.to_owned();
            let id = arg.get_id().as_str();
            let origin = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => Origin::Variable(variable(arg)),
                _ => match file.and_then(|file| file.line(role, id)) {
                    Some(line) => Origin::File { line },
                    None => Origin::Default,
                },
            };
            let value = matches.get_raw(id).map(|values| {
                let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
                hidden(&name, &values.join(","))
            });
            let (value, origin) = match text_of(&name).filter(|_| value.is_none()) {
                Some(variable) => (
                    Some("***".to_owned()),
                    Origin::Variable(variable.to_owned()),
                ),
                None => (value, origin),
            };
            Some(Setting {
                name,
                value,
                origin,
            })
        })
        .collect()
}

/// The variable that holds the text of the file that a setting would name, if it is set.
fn text_of(name: &str) -> Option<&'static str> {
    let (_, variable) = TEXTS.iter().find(|(setting, _)| *setting == name)?;
    let is_set = std::env::var_os(variable).is_some_and(|text| !text.is_empty());
    is_set.then_some(*variable)
}

fn variable(arg: &Arg) -> String {
    let name = arg.get_env().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn hidden(name: &str, value: &str) -> String {
    let secret = name
        .rsplit('-')
        .next()
        .is_some_and(|word| SECRETS.contains(&word));
    match secret && !value.is_empty() {
        true => "***".to_owned(),
        false => redact(value),
    }
}

/// `essaim config`.
///
/// # Errors
/// Standard output is closed.
pub fn show(args: &ConfigArgs) -> Result<()> {
    let text = match args.json {
        true => format!("{:#}\n", document(args)),
        false => table(args),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn document(args: &ConfigArgs) -> Value {
    let mut document = Map::new();
    document.insert("file".to_owned(), json!(args.file));
    for (role, settings) in &args.found {
        let settings = settings.iter().map(|setting| {
            let source = match &setting.origin {
                Origin::Default => json!({"kind": "default"}),
                Origin::File { line } => {
                    json!({"kind": "file", "file": args.file, "line": line})
                }
                Origin::Variable(name) => json!({"kind": "environment", "variable": name}),
                Origin::Flag => json!({"kind": "flag"}),
            };
            let value = json!({"value": setting.value, "source": source});
            (setting.name.clone(), value)
        });
        document.insert(role.name().to_owned(), settings.collect());
    }
    Value::Object(document)
}

fn table(args: &ConfigArgs) -> String {
    let file = args.file.as_deref().unwrap_or_default();
    let mut text = match file {
        "" => "no file (--config, ESSAIM_CONFIG)\n".to_owned(),
        file => format!("file {file}\n"),
    };
    let all = || args.found.iter().flat_map(|(_, settings)| settings);
    let origin = |setting: &Setting| match &setting.origin {
        Origin::Default => "default".to_owned(),
        Origin::File { line } => format!("{file}:{line}"),
        Origin::Variable(name) => name.clone(),
        Origin::Flag => format!("--{}", setting.name),
    };
    let width = |of: &dyn Fn(&Setting) -> String| {
        let widths = all().map(|setting| of(setting).chars().count());
        widths.max().unwrap_or(0)
    };
    let (names, origins) = (width(&|setting| setting.name.clone()), width(&origin));
    for (role, settings) in &args.found {
        text.push_str(&format!("\n[{}]\n", role.name()));
        for setting in settings {
            let value = setting.value.as_deref().unwrap_or("-");
            text.push_str(&format!(
                "{:names$}  {:origins$}  {value}\n",
                setting.name,
                origin(setting)
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(hidden("token", "abc"), "***");
        assert_eq!(hidden("http-token", ""), "");
        assert_eq!(hidden("token-file", "/etc/token"), "/etc/token");
        assert_eq!(hidden("master", "http://u:p@h:1"), "http://***@h:1");
    }
}
