//! The table that is written: its columns, its key, and the statements that create and fill it.

use super::commits::CREATE_LOCK;
use super::{Mode, PostgresSink};
use crate::error::{Error, ErrorKind, Result};
use crate::sources::postgres::catalog::{self, Relation, TableName};
use crate::sources::postgres::client::{Client, STATEMENT, quote};
use crate::sources::postgres::types::Kind;
use crate::sql_types::sql_type;
use arrow::datatypes::SchemaRef;
use sqlx::Row;
use sqlx::postgres::PgArguments;
use std::collections::HashSet;

/// A column that is written.
#[derive(Debug, Clone)]
pub struct TargetColumn {
    pub name: String,
    pub kind: Kind,
    /// Only of a table that the sink creates.
    not_null: bool,
}

/// The table, checked.
#[derive(Debug, Clone)]
pub struct Target {
    pub schema: String,
    pub table: String,
    /// In the order of the input's.
    pub columns: Vec<TargetColumn>,
    pub mode: Mode,
    pub key: Vec<String>,
    /// Whether it was there when the job was planned.
    pub exists: bool,
    /// Whether COPY can fill it: not a view, not a table whose rows are under policies.
    pub takes_copy: bool,
}

impl Target {
    /// Looks at the table that is there, or thinks of the one that will be.
    ///
    /// # Errors
    /// Columns that do not fit, a missing unique index.
    pub async fn plan(
        sink: &PostgresSink,
        input: &SchemaRef,
        overwrite: bool,
        client: &mut Client,
    ) -> Result<Self> {
        let mut seen = HashSet::new();
        for field in input.fields() {
            if !seen.insert(field.name()) {
                return Err(Error::invalid(format!(
                    "two columns are named {}: give one of them another name with AS",
                    quote(field.name())
                )));
            }
        }
        let mode = if overwrite {
            Mode::Overwrite
        } else {
            sink.mode
        };
        for column in &sink.key {
            if !seen.contains(column) {
                return Err(Error::invalid(format!(
                    "the key column {} is missing among the rows' columns {}",
                    quote(column),
                    names(input.fields().iter().map(|field| field.name().as_str()))
                )));
            }
        }
        let relation = catalog::relation(client, &sink.name).await?;
        let takes_copy = relation
            .as_ref()
            .is_none_or(|relation| relation.lockable && !relation.row_security);
        let (schema, table, columns, exists) = match relation {
            Some(relation) => {
                let columns = existing_columns(&relation, input)?;
                if mode == Mode::Upsert {
                    check_key(&relation, &sink.key, client).await?;
                }
                (relation.schema, relation.table, columns, true)
            }
            None => (
                schema_of(&sink.name, client).await?,
                sink.name.table.clone(),
                new_columns(sink, input),
                false,
            ),
        };
        Ok(Self {
            schema,
            table,
            columns,
            mode,
            key: sink.key.clone(),
            exists,
            takes_copy,
        })
    }

    /// For SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }

    /// Creates the table unless somebody else has done so by now.
    fn create(&self) -> String {
        let mut parts: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                let not_null = if column.not_null { " NOT NULL" } else { "" };
                format!("{} {}{not_null}", quote(&column.name), column.kind.sql())
            })
            .collect();
        if !self.key.is_empty() {
            parts.push(format!("PRIMARY KEY ({})", quoted_list(&self.key)));
        }
        format!(
            "CREATE TABLE IF NOT EXISTS {} ({})",
            self.quoted(),
            parts.join(", ")
        )
    }

    /// Creates the table within a transaction, or finds that somebody else has done so.
    ///
    /// # Errors
    /// Columns of other types than planned; the server's.
    pub async fn create_within(&self, client: &mut Client) -> Result<()> {
        client
            .run(format!("{CREATE_LOCK}; {}", self.create()), STATEMENT)
            .await?;
        let name = TableName {
            schema: Some(self.schema.clone()),
            table: self.table.clone(),
        };
        match catalog::relation(client, &name).await? {
            Some(relation) => self.check_created(&relation),
            None => Ok(()),
        }
    }

    /// Checks a table that may have been created by somebody else since the job was planned.
    ///
    /// # Errors
    /// Columns of other types than planned.
    fn check_created(&self, relation: &Relation) -> Result<()> {
        for planned in &self.columns {
            let found = relation.column(&planned.name).map(|c| c.kind.sql());
            if found.as_deref() != Some(planned.kind.sql().as_str()) {
                return Err(Error::invalid(format!(
                    "{} was created by somebody else in the meantime, with other columns: column {} is {} instead of {}. \
                     Run the job again",
                    self.quoted(),
                    quote(&planned.name),
                    found.unwrap_or_else(|| "missing".to_owned()),
                    planned.kind.sql()
                )));
            }
        }
        Ok(())
    }

    /// The columns with the types in which their values are sent.
    pub fn kinds(&self) -> Vec<(String, Kind)> {
        self.columns
            .iter()
            .map(|column| (column.name.clone(), column.kind.clone()))
            .collect()
    }

    /// The columns' names, for SQL.
    pub fn list(&self) -> String {
        quoted_list(self.columns.iter().map(|column| &column.name))
    }

    /// Moves rows into the table; `from` is where they come from, as [`union`] has it. One statement, so that a key that
    /// comes twice is found wherever its rows were staged. As with COPY, the values of an identity column are those given.
    pub fn insert(&self, from: &str) -> String {
        let select: Vec<String> = self
            .columns
            .iter()
            .map(|column| match column.kind.cast_from_text() {
                Some(sql) => format!("{}::{sql}", quote(&column.name)),
                None => quote(&column.name),
            })
            .collect();
        let mut sql = format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {from}",
            self.quoted(),
            self.list(),
            select.join(", ")
        );
        if self.mode == Mode::Upsert {
            let updates: Vec<String> = self
                .columns
                .iter()
                .filter(|column| !self.key.contains(&column.name))
                .map(|column| {
                    let name = quote(&column.name);
                    format!("{name} = EXCLUDED.{name}")
                })
                .collect();
            sql.push_str(&format!(" ON CONFLICT ({})", quoted_list(&self.key)));
            if updates.is_empty() {
                sql.push_str(" DO NOTHING");
            } else {
                sql.push_str(&format!(" DO UPDATE SET {}", updates.join(", ")));
            }
        }
        sql
    }

    /// Says which key came twice, if that is what the server refused. `from` and its parameters are what
    /// [`Self::insert`] had.
    pub async fn explain(
        &self,
        error: Error,
        client: &mut Client,
        from: &str,
        parameters: PgArguments,
    ) -> Error {
        if error.kind() != ErrorKind::Data || self.key.is_empty() {
            return error;
        }
        let find = self.find_duplicate(from);
        let Ok(rows) = client.rows_with(&find, parameters, STATEMENT).await else {
            return error;
        };
        let Some(row) = rows.first() else {
            return error;
        };
        match (row.try_get::<String, _>(0), row.try_get::<i64, _>(1)) {
            (Ok(key), Ok(count)) => Error::data(format!(
                "{}: the key ({}) = ({key}) comes {count} times among the rows to be written: \
                 group the query by the key, or choose one row of each",
                self.quoted(),
                self.key.join(", ")
            )),
            _ => error,
        }
    }

    /// Finds a key that comes more than once among the rows.
    fn find_duplicate(&self, from: &str) -> String {
        let list = quoted_list(&self.key);
        let shown: Vec<String> = self
            .key
            .iter()
            .map(|column| format!("coalesce({}::text, 'NULL')", quote(column)))
            .collect();
        format!(
            "SELECT concat_ws(', ', {}), count(*) FROM {from} GROUP BY {list} HAVING count(*) > 1 LIMIT 1",
            shown.join(", ")
        )
    }
}

/// The rows of staging tables (quoted names), as they stand in a FROM.
pub fn union(staged: &[String]) -> String {
    let parts: Vec<String> = staged
        .iter()
        .map(|table| format!("SELECT * FROM {table}"))
        .collect();
    format!("({}) AS staged", parts.join(" UNION ALL "))
}

fn quoted_list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| quote(name)).collect();
    quoted.join(", ")
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn existing_columns(relation: &Relation, input: &SchemaRef) -> Result<Vec<TargetColumn>> {
    input
        .fields()
        .iter()
        .map(|field| {
            let Some(column) = relation.column(field.name()) else {
                return Err(Error::invalid(format!(
                    "{} has no column {}: it has {}",
                    relation.quoted(),
                    quote(field.name()),
                    names(relation.columns.iter().map(|c| c.name.as_str()))
                )));
            };
            let wrong = |why: String| {
                Error::invalid(format!(
                    "column {} of {}: {why}",
                    quote(field.name()),
                    relation.quoted()
                ))
            };
            if column.generated {
                return Err(wrong(
                    "is computed by the server: declare the table's columns without it".to_owned(),
                ));
            }
            if !column.kind.takes(field.data_type()) {
                return Err(wrong(format!(
                    "is {}, which does not take {}: CAST it to {}",
                    column.kind.sql(),
                    sql_type(field.data_type()),
                    sql_type(&column.kind.arrow())
                )));
            }
            Ok(TargetColumn {
                name: column.name.clone(),
                kind: column.kind.clone(),
                not_null: column.not_null,
            })
        })
        .collect()
}

fn new_columns(sink: &PostgresSink, input: &SchemaRef) -> Vec<TargetColumn> {
    input
        .fields()
        .iter()
        .map(|field| {
            let declared = sink
                .declared
                .as_ref()
                .and_then(|declared| declared.field_with_name(field.name()).ok());
            TargetColumn {
                name: field.name().clone(),
                kind: Kind::for_arrow(field.data_type()),
                not_null: declared.is_some_and(|declared| !declared.is_nullable()),
            }
        })
        .collect()
}

async fn check_key(relation: &Relation, key: &[String], client: &mut Client) -> Result<()> {
    if let Some(unknown) = key.iter().find(|name| relation.column(name).is_none()) {
        return Err(Error::invalid(format!(
            "{} has no column {}, which the key names",
            relation.quoted(),
            quote(unknown)
        )));
    }
    if catalog::has_unique_index(client, relation.oid, key).await? {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "mode 'upsert' needs a unique index on exactly the key: CREATE UNIQUE INDEX ON {} ({})",
        relation.quoted(),
        quoted_list(key)
    )))
}

/// The schema in which a table of this name would be created.
///
/// # Errors
/// The login's search path names none; the server's.
pub async fn schema_of(name: &TableName, client: &mut Client) -> Result<String> {
    if let Some(schema) = &name.schema {
        return Ok(schema.clone());
    }
    let rows = client
        .rows("SELECT pg_catalog.current_schema()::text", &[])
        .await?;
    rows.first()
        .and_then(|row| row.try_get::<Option<String>, _>(0).ok().flatten())
        .ok_or_else(|| {
            Error::invalid(
                "the login's search_path names no schema: write table 'schema.name' in the OPTIONS",
            )
        })
}
