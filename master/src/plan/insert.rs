//! Which column of a table each column of an INSERT's SELECT goes into.

use crate::plan::Planner;
use datafusion::common::TableReference;
use datafusion::common::utils::quote_identifier;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, SetExpr, Statement as SqlStatement};
use essaim_common::connector::METADATA_KEY;
use essaim_common::table::Table;
use essaim_common::{Error, Result};
use std::sync::Arc;

/// An INSERT: what it writes to, and what it selects.
#[derive(Debug)]
pub struct Insert {
    table: String,
    /// The columns that are written, in the order in which the SELECT yields them.
    columns: Vec<String>,
    /// Whether the INSERT names them.
    is_named: bool,
    source: Box<ast::Query>,
}

impl Insert {
    /// Takes an INSERT up before it is planned; `None` for any other statement, and for one whose table is unknown.
    ///
    /// A sink's table that is not there yet and has no columns declared takes those of its first INSERT. Columns that a
    /// source only adds to what was declared, as Kafka's metadata, are not meant by an INSERT that names none.
    ///
    /// # Errors
    /// Rows that cannot be planned, of a table that takes its columns from them.
    pub async fn prepare(planner: &Planner, statement: &mut Statement) -> Result<Option<Self>> {
        let Statement::Statement(sql) = statement else {
            return Ok(None);
        };
        let SqlStatement::Insert(insert) = sql.as_mut() else {
            return Ok(None);
        };
        let ast::TableObject::TableName(name) = &insert.table else {
            return Ok(None);
        };
        let reference = TableReference::parse_str(&name.to_string());
        let Ok(provider) = planner.ctx.table_provider(reference.clone()).await else {
            // The planner names the unknown table.
            return Ok(None);
        };
        let Some(source) = insert.source.clone() else {
            return Ok(None);
        };
        let is_named = !insert.columns.is_empty();
        if !is_named {
            let schema = provider.schema();
            let is_added =
                |field: &arrow::datatypes::Field| field.metadata().contains_key(METADATA_KEY);
            if schema.fields().iter().any(|field| is_added(field)) {
                let declared = schema.fields().iter().filter(|field| !is_added(field));
                insert.columns = declared
                    .map(|field| {
                        ast::ObjectName::from(vec![ast::Ident::with_quote('"', field.name())])
                    })
                    .collect();
            }
        }
        let mut columns: Vec<String> = insert.columns.iter().map(column).collect();
        let Some(table) = provider.downcast_ref::<Table>().filter(|t| t.is_open()) else {
            if columns.is_empty() {
                let schema = provider.schema();
                columns = schema.fields().iter().map(|f| f.name().clone()).collect();
            }
            return Ok(Some(Self {
                table: name.to_string(),
                columns,
                is_named,
                source,
            }));
        };
        let plan = planner.logical(rows(&source)).await?;
        let mut fields: Vec<_> = plan
            .schema()
            .fields()
            .iter()
            .map(|field| field.as_ref().clone())
            .collect();
        if is_named {
            if columns.len() != fields.len() {
                return Err(Error::invalid(format!(
                    "INSERT INTO {name} names {} columns and selects {}",
                    columns.len(),
                    fields.len()
                )));
            }
            for (field, column) in fields.iter_mut().zip(&columns) {
                field.set_name(column);
            }
        }
        columns = fields.iter().map(|field| field.name().clone()).collect();
        let insert = Self {
            table: name.to_string(),
            columns,
            is_named,
            source,
        };
        let schema = Arc::new(arrow::datatypes::Schema::new(fields));
        let filled = Arc::new(table.with_schema(schema));
        planner.ctx.deregister_table(reference.clone())?;
        planner.ctx.register_table(reference, filled)?;
        Ok(Some(insert))
    }

    /// Looks whether the SELECT's names say the same as their order.
    ///
    /// # Errors
    /// An INSERT that names no columns, and a SELECT one of whose names is that of another column than it goes into.
    pub fn check(&self, planned: &LogicalPlan) -> Result<()> {
        // The names of VALUES are nobody's.
        if self.is_named || matches!(self.source.body.as_ref(), SetExpr::Values(_)) {
            return Ok(());
        }
        let LogicalPlan::Dml(dml) = planned else {
            return Ok(());
        };
        let LogicalPlan::Projection(casts) = dml.input.as_ref() else {
            return Ok(());
        };
        let schema = casts.input.schema();
        let selected: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
        for (position, (name, into)) in selected.iter().zip(&self.columns).enumerate() {
            let Some(own) = self.columns.iter().position(|column| column == *name) else {
                continue;
            };
            // One that is in its own place too is meant to be written twice.
            if own == position || selected.get(own) == Some(name) {
                continue;
            }
            let is_column = |name: &&String| self.columns.contains(name);
            let named = match selected.iter().all(is_column) {
                true => list(selected.iter().copied()),
                false => format!("…, {}, …", quote_identifier(name)),
            };
            return Err(Error::invalid(format!(
                "column {} of the SELECT is named {name} and goes into {into}, as an INSERT without names goes by position: write INSERT INTO {} ({named}) SELECT …, or the SELECT in the order of the table's columns: {}",
                position + 1,
                self.table,
                list(&self.columns)
            )));
        }
        Ok(())
    }

    /// What is wrong if the SELECT yields more or fewer columns than there are.
    pub async fn miscounted(&self, planner: &Planner) -> Option<Error> {
        let plan = planner.logical(rows(&self.source)).await.ok()?;
        let fields = plan.schema().fields();
        if fields.len() == self.columns.len() {
            return None;
        }
        let wanted = self.columns.len();
        let who = match self.is_named {
            true => format!("INSERT INTO {} names {wanted}", self.table),
            false => format!("table {} has {wanted}", self.table),
        };
        let advice = match self.is_named {
            true => "select as many as are named",
            false => "name those that are written: INSERT INTO t (a, b) SELECT …",
        };
        Some(Error::invalid(format!(
            "{who} columns ({}), and the SELECT yields {} ({}): {advice}",
            list(&self.columns),
            fields.len(),
            list(fields.iter().map(|field| field.name()))
        )))
    }

    /// Which columns go where, for an error of a value that does not fit its column.
    pub fn pairs(&self, planned: &LogicalPlan) -> Option<String> {
        let LogicalPlan::Dml(dml) = planned else {
            return None;
        };
        let LogicalPlan::Projection(casts) = dml.input.as_ref() else {
            return None;
        };
        let schema = casts.input.schema();
        let target = dml.target.schema();
        let selected = schema.fields().iter().enumerate();
        let pairs = selected.filter_map(|(position, field)| {
            let into = self.columns.get(position)?;
            let column = target.field_with_name(into).ok()?;
            let is_text = field.data_type().is_string() && !column.data_type().is_string();
            is_text.then(|| {
                format!(
                    "column {} of the SELECT is text and goes into {into}",
                    position + 1
                )
            })
        });
        let pairs: Vec<String> = pairs.collect();
        (!pairs.is_empty()).then(|| pairs.join(", "))
    }
}

fn rows(source: &ast::Query) -> Statement {
    Statement::Statement(Box::new(SqlStatement::Query(Box::new(source.clone()))))
}

/// A column that an INSERT names.
fn column(name: &ast::ObjectName) -> String {
    match name.0.last().and_then(|part| part.as_ident()) {
        Some(ident) if ident.quote_style.is_none() => ident.value.to_lowercase(),
        Some(ident) => ident.value.clone(),
        None => name.to_string(),
    }
}

fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names = names.into_iter();
    let quoted: Vec<_> = names.map(|name| quote_identifier(name)).collect();
    quoted.join(", ")
}
