//! `SET`, `RESET` and `SHOW`: a setting of Essaim goes with and without `essaim.` in front of its name.

use datafusion::config::{ConfigOptions, ExtensionOptions};
use datafusion::sql::parser::{DFParser, ResetStatement, Statement};
use datafusion::sql::sqlparser::ast::{Ident, ObjectName, Set, Statement as SqlStatement};
use essaim_common::options::nearest;
use essaim_common::session::Settings;
use essaim_common::{Error, Result};

const PREFIX: &str = "essaim.";

/// Writes a statement about a setting as DataFusion takes it: with `essaim.` in a SET, without in a SHOW, and a RESET as
/// a SET of what a session begins with, which is not everywhere DataFusion's own default.
///
/// # Errors
/// A setting of Essaim that there is not.
pub fn spell(statement: &mut Statement, initial: &ConfigOptions) -> Result<()> {
    match statement {
        Statement::Reset(ResetStatement::Variable(name)) => {
            let name = full(&name.to_string())?;
            let value = match own(&name) {
                Some(_) => value(&Settings::default().entries(), own(&name)),
                None => value(&initial.entries(), Some(&name)),
            };
            // One of the processes is refused as a SET of it is.
            let value = match value {
                None if name.starts_with("datafusion.runtime.") => Some(String::new()),
                value => value,
            };
            if let Some(value) = value {
                let set = format!("SET {name} = '{}'", value.replace('\'', "''"));
                if let Some(set) = DFParser::parse_sql(&set)?.pop_front() {
                    *statement = set;
                }
            }
        }
        Statement::Statement(sql) => match sql.as_mut() {
            SqlStatement::Set(Set::SingleAssignment { variable, .. }) => {
                let name = full(&variable.to_string())?;
                *variable = ObjectName::from(name.split('.').map(Ident::new).collect::<Vec<_>>());
            }
            SqlStatement::ShowVariable { variable } => {
                let is_ours = variable
                    .first()
                    .is_some_and(|first| first.value.eq_ignore_ascii_case("essaim"));
                if is_ours && variable.len() > 1 {
                    full(&format!("{PREFIX}{}", variable[1]))?;
                    variable.remove(0);
                }
            }
            _ => {}
        },
        _ => {}
    }
    Ok(())
}

/// The name of a setting of Essaim without its prefix.
fn own(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
}

fn value(entries: &[datafusion::config::ConfigEntry], name: Option<&str>) -> Option<String> {
    let entry = entries
        .iter()
        .find(|entry| Some(entry.key.as_str()) == name);
    entry.and_then(|entry| entry.value.clone())
}

/// A setting's name in full.
fn full(name: &str) -> Result<String> {
    let name = name.to_lowercase();
    let entries = Settings::default().entries();
    let mut known = entries.iter().map(|entry| entry.key.as_str());
    let short = match own(&name) {
        Some(short) => short,
        // Of DataFusion, or one that only it knows.
        None if name.contains('.') || !known.clone().any(|known| known == name) => {
            return Ok(name);
        }
        None => &name,
    };
    if known.any(|known| known == short) {
        return Ok(format!("{PREFIX}{short}"));
    }
    let known = entries.iter().map(|entry| entry.key.as_str());
    Err(Error::invalid(match nearest(short, known.clone()) {
        Some(near) => {
            format!("there is no setting {PREFIX}{short}: did you mean {PREFIX}{near}?")
        }
        None => format!(
            "there is no setting {PREFIX}{short}: there are {}",
            known.collect::<Vec<_>>().join(", ")
        ),
    }))
}
