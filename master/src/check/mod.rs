//! `essaim check`: everything that can be known of a job before it runs, all of it at once.
//!
//! [`walk`] is what a submit does too, and stops at its first error; here each statement's errors are noted, and what
//! is right is looked at more closely: by its connectors, by [`rows`] and [`estimate`].

mod estimate;
mod rows;
pub(crate) mod walk;

use crate::Shared;
use crate::check::walk::{Checked, Walk};
use crate::jobs::model::JobKind;
use crate::plan::{Planner, Purpose, Query, purpose, statements};
use crate::stream::plan::PlannedInsert;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{LogicalPlan, WriteOp};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use essaim_common::check::{self, Finding, Severity, Write};
use essaim_common::secret::redact;
use essaim_common::{Error, Result};
use essaim_proto::v1;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An answer holds at most so many findings, each of at most so many bytes.
const MAX_FINDINGS: usize = 1_000;
const MAX_TEXT: usize = 4_096;
/// After so long the statements that are left are not looked at.
const DEADLINE: Duration = Duration::from_secs(90);

/// Settings that only a streaming job looks at.
const OF_STREAMS: [&str; 6] = [
    "essaim.trigger",
    "essaim.output_mode",
    "essaim.table_refresh",
    "essaim.state_ttl",
    "essaim.max_state_bytes",
    "essaim.max_epoch_attempts",
];

/// How long a first worker is waited for.
const ARRIVAL: Duration = Duration::from_secs(2);

/// Where a statement begins, from 1; 0 for the job as a whole.
type Place = (u32, u32);

/// Checks a job.
pub(crate) async fn check(shared: &Arc<Shared>, sql: &str) -> v1::CheckResponse {
    let mut check = Check {
        shared: Arc::clone(shared),
        end: Instant::now() + DEADLINE,
        found: BTreeMap::new(),
        estimates: Vec::new(),
        declared: HashMap::new(),
        broken: HashMap::new(),
        looked_at: Vec::new(),
        set: HashMap::new(),
    };
    check.surroundings().await;
    let statements = match statements(sql) {
        Ok(statements) => statements,
        Err(error) => {
            check.add((0, 0), Finding::from(&error));
            Vec::new()
        }
    };
    let count = statements.len() as u32;
    let mut walk = Walk::new(shared);
    // Whether a statement is wrong that may have been an INSERT: what the job lacks is then not known.
    let mut is_whole = true;
    for placed in statements {
        let place = (placed.line, placed.column);
        let statement = match placed.statement {
            Ok(statement) => statement,
            Err(error) => {
                is_whole = false;
                check.add(place, Finding::from(&error));
                continue;
            }
        };
        is_whole &= check.statement(&mut walk, place, statement).await;
    }
    let kind = match is_whole.then(|| walk.kind()).transpose() {
        Ok(kind) => kind,
        Err(error) => {
            check.add((0, 0), Finding::from(&error));
            None
        }
    };
    if kind == Some(JobKind::Batch) {
        check.idle_settings(walk.planner.changed_settings());
    }
    walk.end().await;
    check.answer(count, kind)
}

/// The findings so far, and what the statements so far have declared.
struct Check {
    shared: Arc<Shared>,
    end: Instant,
    found: BTreeMap<Place, Vec<Finding>>,
    estimates: Vec<v1::SourceEstimate>,
    /// Where each table is declared.
    declared: HashMap<TableReference, Place>,
    /// Tables and views whose declaration is wrong: what uses them is not looked at.
    broken: HashMap<TableReference, Place>,
    /// Tables whose source has been asked.
    looked_at: Vec<TableReference>,
    /// Where each setting is SET.
    set: HashMap<String, Place>,
}

impl Check {
    fn add(&mut self, place: Place, finding: Finding) {
        let known = self.found.entry(place).or_default();
        if !known.contains(&finding) {
            known.push(finding);
        }
    }

    /// What every job needs of the cluster.
    async fn surroundings(&mut self) {
        if let Err(error) = self.shared.jobs.check_fence().await {
            self.add((0, 0), Finding::from(&error));
        }
        // One that has just been started is not far.
        let worker = self.shared.registry.wait_for_worker(ARRIVAL).await;
        if worker.is_err() {
            self.add(
                (0, 0),
                Finding::warning(
                    "no worker is registered, so the job would wait",
                    "start one with `essaim worker --master http://HOST:7077`",
                ),
            );
        }
    }

    /// Looks at one statement. Returns whether it was right.
    async fn statement(&mut self, walk: &mut Walk, place: Place, statement: Statement) -> bool {
        let name = declares(&statement);
        let uses = walk.planner.state().resolve_table_references(&statement);
        let uses = uses.unwrap_or_default();
        let others = uses.iter().filter(|table| Some(*table) != name.as_ref());
        let broken = others.filter_map(|table| Some((table.clone(), *self.broken.get(table)?)));
        if let Some((table, (line, _))) = broken.clone().next() {
            let what = format!(
                "not checked, as it uses {table}, whose declaration on line {line} is wrong"
            );
            self.add(place, Finding::note(what, ""));
            if let Some(name) = name {
                self.broken.insert(name, place);
            }
            return false;
        }
        if Instant::now() >= self.end {
            let what = format!(
                "not checked: the {} s for the check are over",
                DEADLINE.as_secs()
            );
            self.add(place, Finding::warning(what, ""));
            return false;
        }
        let is_insert = purpose(&statement) == Purpose::Insert;
        let read = match is_insert {
            true => walk.planner.tables_read(&statement).unwrap_or_default(),
            false => Vec::new(),
        };
        let left = self.end.saturating_duration_since(Instant::now());
        let checked = match tokio::time::timeout(left, walk.statement(statement)).await {
            Ok(checked) => checked,
            Err(_) => Err(Error::unavailable(format!(
                "not finished within the {} s for the check: look with `essaim doctor` what does not answer",
                DEADLINE.as_secs()
            ))),
        };
        self.sources(&walk.planner, place, &read).await;
        match checked {
            Err(error) => {
                self.add(place, Finding::from(&error));
                if let Some(name) = name {
                    self.broken.insert(name, place);
                }
                return false;
            }
            Ok(Checked::Setup) => {
                if let Some(name) = name {
                    self.broken.remove(&name);
                    self.declared.insert(name, place);
                }
                for name in walk.planner.changed_settings().keys() {
                    self.set.entry(name.clone()).or_insert(place);
                }
            }
            Ok(Checked::Later(table)) => self.add(
                place,
                Finding::note(
                    format!("not checked, as it reads {table}, which the job writes before"),
                    "",
                ),
            ),
            Ok(Checked::Batch(query)) => self.batch(place, &query).await,
            Ok(Checked::Stream(query, planned)) => self.stream(place, &query, &planned).await,
        }
        true
    }

    /// Settings of streaming jobs in a job that is none.
    fn idle_settings(&mut self, changed: &HashMap<String, String>) {
        let mut idle: Vec<(String, Place)> = self.set.drain().collect();
        idle.retain(|(name, _)| OF_STREAMS.contains(&name.as_str()) && changed.contains_key(name));
        for (name, place) in idle {
            let what = format!(
                "this is a batch job, as no INSERT reads an UNBOUNDED table, and {name} does nothing"
            );
            let advice = "write CREATE UNBOUNDED EXTERNAL TABLE for what is to be read on and on, or leave the SET out";
            self.add(place, Finding::warning(what, advice));
        }
    }

    async fn batch(&mut self, place: Place, query: &Query) {
        for plan in estimate::plans(query) {
            let (estimates, found) = estimate::of(&self.shared.runtime, &plan).await;
            self.estimates
                .extend(estimates.into_iter().map(|e| at(e, place)));
            for finding in found {
                self.add(place, finding);
            }
        }
        let overwrite = matches!(
            &query.logical,
            LogicalPlan::Dml(dml) if dml.op == WriteOp::Insert(datafusion::logical_expr::dml::InsertOp::Overwrite)
        );
        self.sink(place, query, Write::Batch { overwrite }).await;
    }

    async fn stream(&mut self, place: Place, query: &Query, planned: &PlannedInsert) {
        for (table, source) in &planned.sources {
            match estimate::of_stream(planned, table, source.as_ref()).await {
                Ok(estimate) => self.estimates.push(at(estimate, place)),
                Err(error) => self.add(place, Finding::from(&error)),
            }
        }
        for plan in estimate::statics(planned) {
            let (estimates, found) = estimate::of(&self.shared.runtime, &plan).await;
            self.estimates
                .extend(estimates.into_iter().map(|e| at(e, place)));
            for finding in found {
                self.add(place, finding);
            }
        }
        for operator in planned
            .upper
            .operators
            .iter()
            .filter(|operator| operator.grows)
        {
            self.add(
                place,
                Finding::warning(
                    format!(
                        "nothing closes the groups of {}, so the state grows with every new one, up to essaim.max_state_bytes",
                        operator.shown
                    ),
                    "group by window(…) over a table with event_time, or SET essaim.state_ttl",
                ),
            );
        }
        self.sink(place, query, Write::Stream(planned.mode)).await;
    }

    /// What the sink says to the rows that it would get.
    async fn sink(&mut self, place: Place, query: &Query, write: Write) {
        let LogicalPlan::Dml(dml) = &query.logical else {
            return;
        };
        let Ok(provider) = source_as_provider(&dml.target) else {
            return;
        };
        let schema = Arc::new(dml.input.schema().as_arrow().clone());
        let incoming = check::Incoming {
            schema: &schema,
            write,
            always_null: rows::always_null(&dml.input),
            groups: rows::groups(&dml.input),
        };
        match self.within(check::sink(provider.as_ref(), &incoming)).await {
            Ok(found) => found
                .into_iter()
                .for_each(|finding| self.add(place, finding)),
            Err(error) => {
                let error = error.context(format!("table {}", dml.table_name));
                self.add(place, Finding::from(&error));
            }
        }
    }

    /// What the sources say of themselves, each once, at its declaration.
    async fn sources(&mut self, planner: &Planner, place: Place, read: &[TableReference]) {
        for table in read {
            for (name, provider) in tables(planner, table).await {
                if self.looked_at.contains(&name) {
                    continue;
                }
                self.looked_at.push(name.clone());
                let place = self.declared.get(&name).copied().unwrap_or(place);
                match self.within(check::source(provider.as_ref())).await {
                    Ok(found) => {
                        for mut finding in found {
                            finding.what = format!("table {name}: {}", finding.what);
                            self.add(place, finding);
                        }
                    }
                    Err(error) => {
                        let error = error.context(format!("table {name}"));
                        self.add(place, Finding::from(&error));
                    }
                }
            }
        }
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let left = self.end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, work).await {
            Ok(done) => done,
            Err(_) => Err(Error::unavailable(
                "no answer before the check's time was over",
            )),
        }
    }

    fn answer(self, statements: u32, kind: Option<JobKind>) -> v1::CheckResponse {
        let found = self.found.into_iter();
        let mut found: Vec<(Place, Finding)> = found
            .flat_map(|(place, found)| found.into_iter().map(move |finding| (place, finding)))
            .collect();
        // The worst first, so that a limit leaves out the least.
        found.sort_by_key(|(_, finding)| std::cmp::Reverse(finding.severity));
        let mut by_place: BTreeMap<Place, Vec<Finding>> = BTreeMap::new();
        for (place, finding) in found.into_iter().take(MAX_FINDINGS) {
            by_place.entry(place).or_default().push(finding);
        }
        let findings = by_place.into_iter().flat_map(|((line, column), found)| {
            found.into_iter().map(move |finding| v1::Finding {
                severity: severity(finding.severity) as i32,
                line,
                column,
                what: text(&finding.what),
                advice: text(&finding.advice),
            })
        });
        v1::CheckResponse {
            findings: findings.collect(),
            estimates: self.estimates,
            statements,
            streaming: kind.map(|kind| kind == JobKind::Streaming),
        }
    }
}

fn at(estimate: v1::SourceEstimate, place: Place) -> v1::SourceEstimate {
    v1::SourceEstimate {
        line: place.0,
        ..estimate
    }
}

fn severity(severity: Severity) -> v1::Severity {
    match severity {
        Severity::Note => v1::Severity::Note,
        Severity::Warning => v1::Severity::Warning,
        Severity::Error => v1::Severity::Error,
    }
}

/// Without secrets, and not too long.
fn text(text: &str) -> String {
    let mut text = redact(text);
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

/// The table or view that a statement declares.
fn declares(statement: &Statement) -> Option<TableReference> {
    let name = match statement {
        Statement::CreateExternalTable(table) => table.name.to_string(),
        Statement::Statement(sql) => match sql.as_ref() {
            SqlStatement::CreateView(view) => view.name.to_string(),
            _ => return None,
        },
        _ => return None,
    };
    Some(TableReference::from(name))
}

/// A table, or those below a view.
async fn tables(
    planner: &Planner,
    name: &TableReference,
) -> Vec<(TableReference, Arc<dyn TableProvider>)> {
    let Some(provider) = planner.table(name.clone()).await else {
        return Vec::new();
    };
    let Some(view) = provider.get_logical_plan() else {
        return vec![(name.clone(), provider)];
    };
    let mut found = Vec::new();
    let walked = view.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = source_as_provider(&scan.source)
        {
            found.push((scan.table_name.clone(), provider));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    match walked {
        Ok(_) => found,
        Err(_) => Vec::new(),
    }
}
