//! Settings from one TOML file, the environment and flags, in that order of growing precedence.
//!
//! Every long flag of `master`, `worker` and what all client commands share is also a key of the file and a variable:
//! both are put into clap's own description of the command line, so that a new flag needs no line here.

mod file;
mod show;

use crate::Cli;
use crate::client::{Failure, MasterAddress};
use crate::serve::{MasterArgs, WorkerArgs};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Args, Command, CommandFactory, FromArgMatches};
use essaim_common::options::nearest;
use file::File;
pub use show::{ConfigArgs, show};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// What our variables begin with.
const PREFIX: &str = "ESSAIM_";
/// Variables of ours that are no setting of a command.
const OTHERS: [&str; 5] = [
    "ESSAIM_CACHE",
    "ESSAIM_CONFIG",
    "ESSAIM_LOG",
    "ESSAIM_TOKEN",
    "ESSAIM_TOKENS",
];
/// What the names begin with of variables that others choose: values for jobs, and what tests need.
const FREE: [&str; 2] = ["ESSAIM_TEST_", "ESSAIM_VAR_"];
/// Subcommands that take nothing from file or environment: they bring their own cluster along.
const UNTOUCHED: [&str; 2] = ["demo", "local"];

/// Whose settings they are: a table of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Master,
    Worker,
    Client,
}

impl Role {
    const ALL: [Self; 3] = [Self::Master, Self::Worker, Self::Client];

    /// The table's name.
    fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Worker => "worker",
            Self::Client => "client",
        }
    }

    /// A command with the role's flags and nothing else. Clients share how they reach the master.
    fn command(self) -> Command {
        let command = Command::new(self.name()).disable_help_flag(true);
        let command = match self {
            Self::Master => MasterArgs::augment_args(command),
            Self::Worker => WorkerArgs::augment_args(command),
            Self::Client => MasterAddress::augment_args(command),
        };
        with_environment(command, self)
    }

    /// The role of a subcommand.
    fn of(subcommand: &str) -> Option<Self> {
        match subcommand {
            "master" => Some(Self::Master),
            "worker" => Some(Self::Worker),
            "config" | "help" => None,
            other if UNTOUCHED.contains(&other) => None,
            _ => Some(Self::Client),
        }
    }
}

/// The flags that are settings.
fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        arg.get_long().is_some()
            && !matches!(
                arg.get_action(),
                ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort | ArgAction::Version
            )
    })
}

/// The names of a role's settings, as clap knows them.
fn ids(role: Role) -> Vec<String> {
    let command = match role {
        Role::Master => MasterArgs::augment_args(Command::new("")),
        Role::Worker => WorkerArgs::augment_args(Command::new("")),
        Role::Client => MasterAddress::augment_args(Command::new("")),
    };
    settings(&command)
        .map(|arg| arg.get_id().to_string())
        .collect()
}

/// Changes each setting of the role that the command has.
fn change(mut command: Command, role: Role, change: impl Fn(Arg) -> Arg) -> Command {
    for id in ids(role) {
        if command.get_arguments().any(|arg| *arg.get_id() == *id) {
            command = command.mut_arg(id, &change);
        }
    }
    command
}

/// Gives each setting its variable, unless it has one.
fn with_environment(command: Command, role: Role) -> Command {
    change(command, role, |arg| {
        let arg = arg.hide_env_values(true);
        match (arg.get_env(), arg.get_long()) {
            (None, Some(long)) => {
                let name = format!("{PREFIX}{}", long.to_ascii_uppercase().replace('-', "_"));
                // Clap wants texts that live as long as the process; there are some dozens.
                arg.env(OsStr::new(Box::leak(name.into_boxed_str())))
            }
            _ => arg,
        }
    })
}

/// Applies `with` to every subcommand that has a role, those of `config` among them.
fn for_each_role(mut cli: Command, with: impl Fn(Command, Role) -> Command) -> Command {
    let names = |command: &Command| -> Vec<String> {
        let all = command.get_subcommands();
        all.map(|command| command.get_name().to_owned()).collect()
    };
    for name in names(&cli) {
        if let Some(role) = Role::of(&name) {
            cli = cli.mut_subcommand(&name, |command| with(command, role));
        }
    }
    cli.mut_subcommand("config", |mut config| {
        for name in names(&config) {
            if let Some(role) = Role::ALL.into_iter().find(|role| role.name() == name) {
                config = config.mut_subcommand(&name, |command| with(command, role));
            }
        }
        config
    })
}

/// Reads the command line, over the environment, over the file. Ends the process where clap does: after `--help`, or with
/// a message about a wrong flag.
///
/// # Errors
/// [`Failure::Usage`] for a file that cannot be read or a wrong value in it or in a variable.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Failure> {
    let args: Vec<OsString> = args.into_iter().collect();
    for warning in warnings(std::env::vars_os().map(|(name, _)| name)) {
        eprintln!("warning: {warning}");
    }
    let cli = for_each_role(Cli::command(), with_environment);
    let file = match file_name(&cli, &args) {
        Some(path) => Some(File::read(&path)?),
        None => None,
    };
    let cli = for_each_role(cli, |command, role| match &file {
        Some(file) => file.put_into(command, role),
        None => command,
    });
    let matches = match cli.clone().try_get_matches_from(&args) {
        Ok(matches) => matches,
        Err(error) => match wrong_variable(&error) {
            Some(failure) => return Err(failure),
            None => with_tip(error, &cli, &args).exit(),
        },
    };
    let mut parsed = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let (crate::Command::Config(config), Some((_, matches))) =
        (&mut parsed.command, matches.subcommand())
    {
        config.look_up(matches, file.as_ref())?;
    }
    Ok(parsed)
}

/// The file that the command line or the environment names. A command line that is wrong otherwise is for the real
/// parser to refuse.
fn file_name(cli: &Command, args: &[OsString]) -> Option<PathBuf> {
    let matches = cli.clone().ignore_errors(true).try_get_matches_from(args);
    matches
        .ok()?
        .get_one::<PathBuf>("config")
        .cloned()
        .or_else(|| std::env::var_os("ESSAIM_CONFIG").map(PathBuf::from))
        .filter(|path| !path.as_os_str().is_empty())
}

/// Tells somebody who wrote SQL or a file behind `essaim sql`, as for other clients, where it goes.
fn with_tip(mut error: clap::Error, cli: &Command, args: &[OsString]) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let known = cli.clone().ignore_errors(true).try_get_matches_from(args);
    let subcommand = known
        .ok()
        .and_then(|m| m.subcommand_name().map(str::to_owned));
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) if !argument.starts_with('-') => argument.clone(),
        _ => return error,
    };
    if let Some(name @ ("sql" | "local")) = subcommand.as_deref() {
        let tip = match std::path::Path::new(&argument).is_file() {
            true => format!("a file goes behind -f: essaim {name} -f {argument}"),
            false => format!("SQL goes behind -c, in quotes: essaim {name} -c \"SELECT 1\""),
        };
        let tip = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

/// Clap names the flag where a variable holds a wrong value: says which variable it was.
fn wrong_variable(error: &clap::Error) -> Option<Failure> {
    if !matches!(
        error.kind(),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation
    ) {
        return None;
    }
    let (name, why) = Role::ALL.into_iter().find_map(|role| {
        let command = role.command();
        settings(&command).find_map(|arg| {
            let name = arg.get_env()?.to_str()?.to_owned();
            let value = std::env::var(&name).ok()?;
            let why = refusal(&command, arg, &value)?;
            // What clap complained about, and not a variable of another command.
            (one_line(error) == why).then_some((name, why))
        })
    })?;
    Some(Failure::Usage(format!("the variable {name}: {why}")))
}

/// Why a setting cannot have this value, in one line; `None` if it can.
fn refusal(command: &Command, arg: &Arg, value: &str) -> Option<String> {
    let long = arg.get_long()?;
    if !arg.get_action().takes_values() {
        // A switch takes none on the command line, but its variable does.
        let is_known = ["true", "false"].contains(&value);
        return (!is_known).then(|| {
            format!("invalid value '{value}' for '--{long}' [possible values: true, false]")
        });
    }
    let mut bare = command.clone().no_binary_name(true);
    for id in settings(command).map(|arg| arg.get_id().clone()) {
        // Only the value that is looked at may be wrong.
        bare = bare.mut_arg(id, |arg| arg.env(None));
    }
    let error = bare
        .try_get_matches_from([format!("--{long}={value}")])
        .err()?;
    let about_value = matches!(
        error.kind(),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::InvalidUtf8
    );
    if !about_value {
        return None;
    }
    Some(one_line(&error))
}

/// Clap's words without the usage that follows them.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let end = text.find("\n\nFor more").unwrap_or(text.len());
    let line = text[..end].trim_start_matches("error: ");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Variables that look like ours but are none, each with what may have been meant.
fn warnings(names: impl Iterator<Item = OsString>) -> Vec<String> {
    let mut known: Vec<String> = OTHERS.iter().map(|name| (*name).to_owned()).collect();
    for role in Role::ALL {
        let command = role.command();
        let variables = settings(&command).filter_map(|arg| arg.get_env()?.to_str());
        known.extend(variables.map(str::to_owned));
    }
    let mut warnings: Vec<String> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .filter(|name| !FREE.iter().any(|free| name.starts_with(free)))
        .filter_map(|name| {
            let near = nearest(&name, known.iter().map(String::as_str))?;
            Some(format!(
                "the variable {name} is no setting: did you mean {near}?"
            ))
        })
        .collect();
    warnings.sort();
    warnings
}

#[cfg(test)]
mod tests;
