//! `essaim check`: what is wrong with a job, or may go wrong, before it runs.

use crate::client::{self, Failure, MasterAddress};
use crate::job_json;
use crate::jobs::{read, say};
use crate::serve::LocalCluster;
use crate::text::one_line;
use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use essaim_proto::v1::{CheckRequest, CheckResponse, Finding, Severity, SourceEstimate};
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};
use std::time::Duration;

/// The master gives up after 90 s and says so.
const ANSWER: Duration = Duration::from_secs(100);

#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The job file; - for standard input.
    #[arg(required_unless_present = "command", conflicts_with = "command")]
    file: Option<String>,
    /// Check these statements.
    #[arg(short = 'c', long, value_name = "SQL")]
    command: Option<String>,
    /// End with 1 for a warning too.
    #[arg(long)]
    strict: bool,
    /// Check on a master in this process, with this machine's environment, instead of the cluster's.
    #[arg(long)]
    local: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: MasterAddress,
}

/// `essaim check`.
///
/// # Errors
/// There are findings that make the job fail; the file cannot be read; the master cannot be reached.
pub async fn run(args: CheckArgs) -> Result<()> {
    let (sql, name) = match (&args.command, args.file.as_deref()) {
        (Some(sql), _) => (sql.clone(), "command"),
        (None, Some("-")) => (read("-")?, "standard input"),
        (None, file) => {
            let file = file.unwrap_or_default();
            (read(file)?, file)
        }
    };
    let checked = if args.local {
        let cluster = LocalCluster::start(1, 2).await?;
        let checked = check(&MasterAddress::plain(&cluster.address), sql).await;
        cluster.stop().await;
        checked?
    } else {
        check(&args.address, sql).await?
    };
    if args.json {
        job_json::print(&document(&checked))?;
    } else {
        say(&report(&checked, name))?;
    }
    verdict(&checked, args.strict)
}

async fn check(master: &MasterAddress, sql: String) -> Result<CheckResponse, Failure> {
    let mut client = client::connect(master).await?;
    client::answer_within(ANSWER, client.check(CheckRequest { sql })).await
}

fn verdict(checked: &CheckResponse, strict: bool) -> Result<()> {
    let (errors, warnings) = (
        count(checked, Severity::Error),
        count(checked, Severity::Warning),
    );
    if errors == 0 && (warnings == 0 || !strict) {
        return Ok(());
    }
    Err(Failure::Failed(format!("the job has {}", summary(errors, warnings))).into())
}

fn count(checked: &CheckResponse, severity: Severity) -> usize {
    let of = |finding: &&Finding| finding.severity() == severity;
    checked.findings.iter().filter(of).count()
}

fn summary(errors: usize, warnings: usize) -> String {
    let some = |count: usize, what: &str| match count {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    format!(
        "{} and {}",
        some(errors, "error"),
        some(warnings, "warning")
    )
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note | Severity::Unspecified => "note",
    }
}

fn report(checked: &CheckResponse, name: &str) -> String {
    let mut text = String::new();
    for finding in &checked.findings {
        let place = match finding.line {
            0 => name.to_owned(),
            line => format!("{name}:{line}:{}", finding.column),
        };
        let severity = word(finding.severity());
        text.push_str(&format!(
            "{place}: {severity}: {}\n",
            one_line(&finding.what)
        ));
        if !finding.advice.is_empty() {
            text.push_str(&format!("    {}\n", one_line(&finding.advice)));
        }
    }
    if !checked.estimates.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&table(&checked.estimates));
        text.push('\n');
    }
    let (errors, warnings) = (
        count(checked, Severity::Error),
        count(checked, Severity::Warning),
    );
    let kind = match kind(checked) {
        Some(kind) => format!(", {kind} job"),
        None => String::new(),
    };
    text.push_str(&format!(
        "{} statements{kind}: {}\n",
        checked.statements,
        summary(errors, warnings)
    ));
    text
}

/// How the job would run, if that is known.
fn kind(checked: &CheckResponse) -> Option<&'static str> {
    checked.streaming.map(|streaming| match streaming {
        true => "streaming",
        false => "batch",
    })
}

fn table(estimates: &[SourceEstimate]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["LINE", "READS", "FROM", "SPLITS", "ROWS", "BYTES"]);
    for column in 3..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for estimate in estimates {
        let rows = match estimate.rows {
            Some(rows) if estimate.unbounded => format!("{} waiting", HumanCount(rows)),
            Some(rows) => format!("~{}", HumanCount(rows)),
            None => "?".to_owned(),
        };
        let bytes = estimate
            .bytes
            .map(|bytes| format!("~{}", HumanBytes(bytes)));
        table.add_row([
            estimate.line.to_string(),
            one_line(&estimate.table),
            estimate.connector.clone(),
            estimate.splits.to_string(),
            rows,
            bytes.unwrap_or_default(),
        ]);
    }
    table.trim_fmt()
}

fn document(checked: &CheckResponse) -> Value {
    let findings = checked.findings.iter().map(|finding| {
        json!({
            "severity": word(finding.severity()),
            "line": finding.line,
            "column": finding.column,
            "what": finding.what,
            "advice": finding.advice,
        })
    });
    let estimates = checked.estimates.iter().map(|estimate| {
        json!({
            "line": estimate.line,
            "table": estimate.table,
            "connector": estimate.connector,
            "unbounded": estimate.unbounded,
            "splits": estimate.splits,
            "rows": estimate.rows,
            "bytes": estimate.bytes,
        })
    });
    json!({
        "statements": checked.statements,
        "kind": kind(checked),
        "errors": count(checked, Severity::Error),
        "warnings": count(checked, Severity::Warning),
        "findings": findings.collect::<Vec<_>>(),
        "estimates": estimates.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(severities: &[Severity]) -> CheckResponse {
        let findings = severities.iter().map(|severity| Finding {
            severity: *severity as i32,
            line: 3,
            column: 1,
            what: "so\u{1b}".to_owned(),
            advice: "do".to_owned(),
        });
        CheckResponse {
            findings: findings.collect(),
            estimates: Vec::new(),
            statements: 2,
            streaming: Some(true),
        }
    }

    #[test]
    fn a_warning_fails_only_a_strict_check() {
        let warned = checked(&[Severity::Warning, Severity::Note]);
        assert!(verdict(&warned, false).is_ok());
        assert!(verdict(&warned, true).is_err());
        assert!(verdict(&checked(&[Severity::Note]), true).is_ok());
        assert!(verdict(&checked(&[Severity::Error]), false).is_err());
    }

    #[test]
    fn a_finding_is_a_line_with_its_place() {
        let text = report(&checked(&[Severity::Error]), "job.sql");
        assert_eq!(
            text,
            "job.sql:3:1: error: so\\x1b\n    do\n2 statements, streaming job: 1 error and no warnings\n"
        );
    }
}
