//! The TOML file: a table for each role, checked as a whole whichever command reads it.

use super::{Role, change, refusal, settings};
use crate::client::Failure;
use clap::builder::OsStr;
use clap::{Arg, ArgAction, Command};
use essaim_common::options::nearest;
use std::any::TypeId;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml_edit::{Document, Item, Value};

/// A file that has been read and found right.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    /// By role and clap's name of the setting.
    entries: BTreeMap<(Role, String), Entry>,
}

#[derive(Debug)]
struct Entry {
    /// As on the command line.
    values: Vec<String>,
    line: usize,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Failure::Usage`]: it cannot be read, is no TOML, has a table or a key that is none, or a value that does not fit.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::Usage(format!(
                "the configuration {} (--config, ESSAIM_CONFIG) cannot be read: {e}",
                path.display()
            ))
        })?;
        let entries = entries(&text)
            .map_err(|(line, why)| Failure::Usage(format!("{}:{line}: {why}", path.display())))?;
        Ok(Self {
            path: path.to_owned(),
            entries,
        })
    }

    /// Makes the file's values the command's defaults.
    pub fn put_into(&self, command: Command, role: Role) -> Command {
        change(command, role, |arg| {
            let Some(entry) = self.entries.get(&(role, arg.get_id().to_string())) else {
                return arg;
            };
            // Clap wants texts that live as long as the process.
            let values = entry
                .values
                .iter()
                .map(|value| &*Box::leak(value.clone().into_boxed_str()));
            arg.required(false)
                .default_values(values.map(OsStr::from).collect::<Vec<_>>())
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line on which a setting stands.
    pub fn line(&self, role: Role, id: &str) -> Option<usize> {
        let entry = self.entries.get(&(role, id.to_owned()))?;
        Some(entry.line)
    }
}

/// What is wrong, and on which line.
type Wrong = (usize, String);

fn entries(text: &str) -> Result<BTreeMap<(Role, String), Entry>, Wrong> {
    let line = |span: Option<std::ops::Range<usize>>| {
        let start = span.map_or(0, |span| span.start.min(text.len()));
        text[..start].matches('\n').count() + 1
    };
    let document = Document::parse(text).map_err(|e| {
        let why = e.message().trim().replace('\n', ": ");
        (line(e.span()), why)
    })?;
    let commands = Role::ALL.map(|role| (role, role.command()));
    let mut entries = BTreeMap::new();
    for (name, item) in document.as_table().iter() {
        let key = document.as_table().get_key_value(name).map(|(key, _)| key);
        let at = line(key.and_then(toml_edit::Key::span).or_else(|| item.span()));
        let Some((role, command)) = commands.iter().find(|(role, _)| role.name() == name) else {
            return Err((at, stray(name, item, &commands)));
        };
        let Some(table) = item.as_table_like() else {
            return Err((at, format!("{name} is a table: write [{name}]")));
        };
        for (name, item) in table.iter() {
            let key = table.get_key_value(name).map(|(key, _)| key);
            let at = line(key.and_then(toml_edit::Key::span).or_else(|| item.span()));
            let arg = setting(command, name).ok_or_else(|| {
                let why = unknown(*role, command, name, &commands);
                (at, why)
            })?;
            let place = format!("{}.{name}", role.name());
            let values = values(arg, item).map_err(|why| (at, format!("{place}: {why}")))?;
            if values.is_empty() && arg.get_id() == "file_roots" {
                let why = "the list is empty: write \"none\" for no files at all, or leave it out for files anywhere";
                return Err((at, format!("{place}: {why}")));
            }
            for value in &values {
                if let Some(why) = refusal(command, arg, value) {
                    return Err((at, format!("{place}: {why}")));
                }
            }
            let id = arg.get_id().to_string();
            if entries
                .insert((*role, id), Entry { values, line: at })
                .is_some()
            {
                return Err((at, format!("{place} is given twice, with - and with _")));
            }
        }
    }
    Ok(entries)
}

/// The setting of a key, which may have `_` for `-`.
fn setting<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let wanted = key.replace('_', "-");
    settings(command).find(|arg| arg.get_long() == Some(wanted.as_str()))
}

fn stray(name: &str, item: &Item, commands: &[(Role, Command)]) -> String {
    let tables = "[master], [worker] and [client]";
    if item.is_table_like() {
        return match nearest(name, Role::ALL.map(Role::name)) {
            Some(near) => format!("unknown table [{name}]: did you mean [{near}]?"),
            None => format!("unknown table [{name}]: there are {tables}"),
        };
    }
    match homes(name, commands).as_slice() {
        [] => format!("the key {name} stands before any table: there are {tables}"),
        homes => format!("the key {name} belongs under {}", homes.join(" or ")),
    }
}

/// The tables that have the key.
fn homes(name: &str, commands: &[(Role, Command)]) -> Vec<String> {
    commands
        .iter()
        .filter(|(_, command)| setting(command, name).is_some())
        .map(|(role, _)| format!("[{}]", role.name()))
        .collect()
}

fn unknown(role: Role, command: &Command, name: &str, commands: &[(Role, Command)]) -> String {
    let wanted = name.replace('_', "-");
    let known = || settings(command).filter_map(Arg::get_long);
    let hint = match (nearest(&wanted, known()), homes(name, commands).as_slice()) {
        (_, [home, ..]) => format!("it belongs under {home}"),
        (Some(near), []) => format!("did you mean {near}?"),
        (None, []) => format!("known are {}", known().collect::<Vec<_>>().join(", ")),
    };
    format!("unknown key {name} in [{}]: {hint}", role.name())
}

/// A value as the command line would have it.
fn values(arg: &Arg, item: &Item) -> Result<Vec<String>, String> {
    let takes = |of: TypeId| arg.get_value_parser().type_id() == of;
    let wrong = |given: &str| {
        let wanted =
            if matches!(arg.get_action(), ArgAction::SetTrue) || takes(TypeId::of::<bool>()) {
                "true or false"
            } else if takes(TypeId::of::<String>()) || takes(TypeId::of::<PathBuf>()) {
                "a text in quotes"
            } else {
                "a text in quotes or a number"
            };
        Err(format!("it is {given}, and should be {wanted}"))
    };
    let single = |value: &Value| {
        let only_texts = takes(TypeId::of::<String>()) || takes(TypeId::of::<PathBuf>());
        let truth = matches!(arg.get_action(), ArgAction::SetTrue) || takes(TypeId::of::<bool>());
        match value {
            Value::Boolean(value) if truth => Ok(value.value().to_string()),
            Value::String(value) if !truth => Ok(value.value().clone()),
            Value::Integer(value) if !truth && !only_texts => Ok(value.value().to_string()),
            Value::Float(value) if !truth && !only_texts => Ok(value.value().to_string()),
            Value::Boolean(_) => wrong("a boolean"),
            Value::String(_) => wrong("a text"),
            Value::Integer(_) | Value::Float(_) => wrong("a number"),
            Value::Datetime(_) => wrong("a time"),
            Value::Array(_) => wrong("a list"),
            Value::InlineTable(_) => wrong("a table"),
        }
    };
    let many = arg.get_value_delimiter().is_some() || matches!(arg.get_action(), ArgAction::Append);
    match item {
        Item::Value(Value::Array(array)) if many => array.iter().map(single).collect(),
        Item::Value(value) => Ok(vec![single(value)?]),
        Item::None | Item::Table(_) | Item::ArrayOfTables(_) => {
            wrong("a table").map(|text: String| vec![text])
        }
    }
}
