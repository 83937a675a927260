//! What would keep the sink from writing: permissions, columns that must have a value, a key that is not unique.

use super::{Mode, PostgresSink};
use crate::check::{Finding, Incoming, Write};
use crate::error::Result;
use crate::sources::postgres::catalog::{self, Relation, TableName};
use crate::sources::postgres::client::{Client, quote};
use crate::sources::postgres::privileges;
use crate::stream::OutputMode;

/// The findings for rows that [`super::Target::plan`] took.
///
/// # Errors
/// The server's.
pub async fn check(sink: &PostgresSink, incoming: &Incoming<'_>) -> Result<Vec<Finding>> {
    let mut client = sink.database.connect().await?;
    let client = &mut client;
    let mut found = Vec::new();
    if privileges::is_read_only(client).await? {
        found.push(Finding::error(
            format!(
                "{} takes no writes: it is a standby, or default_transaction_read_only is on",
                client.place()
            ),
            "name the primary server in LOCATION",
        ));
    }
    let replaces = matches!(
        incoming.write,
        Write::Batch { overwrite: true } | Write::Stream(OutputMode::Complete)
    );
    let mode = if replaces { Mode::Overwrite } else { sink.mode };
    let login = privileges::login(client).await?;
    let relation = catalog::relation(client, &sink.name).await?;
    let schema = match &relation {
        Some(relation) => {
            let wanted: &[&str] = match mode {
                Mode::Append => &["INSERT"],
                Mode::Upsert => &["INSERT", "UPDATE", "SELECT"],
                Mode::Overwrite => &["INSERT", "DELETE"],
            };
            let names = incoming.schema.fields().iter().map(|f| f.name().clone());
            let names: Vec<String> = names.collect();
            let missing = privileges::missing(client, relation, wanted, &names).await?;
            found.extend(lacking(&login, &missing, &relation.quoted()));
            found.extend(nulls(relation, incoming, client).await?);
            relation.schema.clone()
        }
        None => super::target::schema_of(&sink.name, client).await?,
    };
    if mode == Mode::Upsert {
        found.extend(duplicates(sink, incoming));
    }
    found.extend(own_tables(&schema, &login, relation.is_some(), mode, incoming, client).await?);
    Ok(found)
}

fn lacking(login: &str, missing: &[String], what: &str) -> Option<Finding> {
    let missing = missing.join(", ");
    (!missing.is_empty()).then(|| {
        Finding::error(
            format!("the login {login} may not {missing} on {what}"),
            format!("GRANT {missing} ON {what} TO {login}"),
        )
    })
}

/// Columns that the server wants a value for, and the rows have none or may have none.
async fn nulls(
    relation: &Relation,
    incoming: &Incoming<'_>,
    client: &mut Client,
) -> Result<Vec<Finding>> {
    let fields = incoming.schema.fields();
    let is_null = |name: &str| {
        let mut always = incoming.always_null.iter();
        always.any(|index| fields.get(*index).is_some_and(|field| field.name() == name))
    };
    let given = |name: &str| incoming.schema.field_with_name(name).ok();
    let required = privileges::required_columns(client, relation.oid).await?;
    let mut found = Vec::new();
    for column in relation
        .columns
        .iter()
        .filter(|c| c.not_null && !c.generated)
    {
        let name = &column.name;
        let what = match given(name) {
            // A NULL that is given takes the place of a default.
            Some(_) if is_null(name) => "is NOT NULL, and the INSERT makes it NULL in every row",
            None if required.contains(name) => {
                "is NOT NULL without a default, and the INSERT gives it no value"
            }
            _ => continue,
        };
        found.push(Finding::error(
            format!("column {} of {} {what}", quote(name), relation.quoted()),
            "SELECT a value for it; or declare the table's columns without it, if the server fills it in",
        ));
    }
    let nullable = relation.columns.iter().filter(|column| {
        let is_nullable = given(&column.name).is_some_and(|field| field.is_nullable());
        column.not_null && is_nullable && !is_null(&column.name)
    });
    let nullable: Vec<String> = nullable.map(|column| quote(&column.name)).collect();
    if !nullable.is_empty() {
        found.push(Finding::note(
            format!(
                "{} wants {} NOT NULL, and the SELECT may yield NULL there, which would fail the commit",
                relation.quoted(),
                nullable.join(", ")
            ),
            "filter with WHERE … IS NOT NULL, use coalesce(…), or declare the source's columns NOT NULL",
        ));
    }
    Ok(found)
}

/// A key that comes twice in one commit fails it.
fn duplicates(sink: &PostgresSink, incoming: &Incoming<'_>) -> Option<Finding> {
    let key = sink.key.join(", ");
    let streams = matches!(incoming.write, Write::Stream(_));
    let advice = format!("GROUP BY {key}, or SELECT DISTINCT ON ({key}) …");
    let per = if streams { "an epoch" } else { "the job" };
    match incoming.is_unique(&sink.key) {
        Some(true) => None,
        Some(false) => Some(Finding::warning(
            format!(
                "the rows are grouped by more than the key ({key}) of {}: a key that comes twice in {per} fails it",
                sink.name.quoted()
            ),
            advice,
        )),
        None => {
            let what = format!(
                "nothing says that the key ({key}) of {} comes once only: a key that comes twice in {per} fails it",
                sink.name.quoted()
            );
            Some(match streams {
                true => Finding::warning(what, advice),
                false => Finding::note(what, advice),
            })
        }
    }
}

/// What the sink itself creates: the target, its table of commits, the tables that hold rows before a commit.
async fn own_tables(
    schema: &str,
    login: &str,
    target_exists: bool,
    mode: Mode,
    incoming: &Incoming<'_>,
    client: &mut Client,
) -> Result<Vec<Finding>> {
    let name = TableName {
        schema: Some(schema.to_owned()),
        table: "essaim_commits".to_owned(),
    };
    let mut found = Vec::new();
    let mut creates = Vec::new();
    if !target_exists {
        creates.push("the target");
    }
    match catalog::relation(client, &name).await? {
        Some(commits) => {
            let wanted = ["SELECT", "INSERT", "UPDATE"];
            let missing = privileges::missing(client, &commits, &wanted, &[]).await?;
            found.extend(lacking(login, &missing, &commits.quoted()));
        }
        None => creates.push("essaim_commits"),
    }
    match incoming.write {
        Write::Batch { .. } => creates.push("staging tables"),
        Write::Stream(_) if mode == Mode::Upsert => {
            if !privileges::may_create_temporary(client).await? {
                found.push(Finding::error(
                    format!("the login {login} may not create temporary tables, which hold the rows of an epoch"),
                    format!("GRANT TEMPORARY ON DATABASE … TO {login}"),
                ));
            }
        }
        Write::Stream(_) => {}
    }
    if creates.is_empty() {
        return Ok(found);
    }
    let creates = creates.join(", ");
    match privileges::may_create(client, schema).await? {
        Some(true) => {}
        Some(false) => found.push(Finding::error(
            format!(
                "the login {login} may not create tables in schema {}, and the job needs {creates}",
                quote(schema)
            ),
            format!("GRANT CREATE ON SCHEMA {} TO {login}", quote(schema)),
        )),
        None => found.push(Finding::error(
            format!(
                "there is no schema {}, and the job needs {creates} in it",
                quote(schema)
            ),
            format!(
                "CREATE SCHEMA {}, or name another in the option table",
                quote(schema)
            ),
        )),
    }
    Ok(found)
}
