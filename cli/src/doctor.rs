//! `essaim doctor`: which link between client, master, workers, brokers, databases and state dir is broken.

use crate::client::{self, Failure, MasterAddress};
use crate::job_json;
use crate::jobs::{read, say};
use crate::text::one_line;
use crate::watch::now_ms;
use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use essaim_proto::v1::{DoctorRequest, DoctorResponse, Link, LinkStatus};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What an answer may take beyond the probes: the master asks each worker twice.
const SLACK: Duration = Duration::from_secs(10);
/// Clocks that are further apart are a warning; ms.
const SKEW_MS: f64 = 1000.0;

#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// The job file whose sources and sinks are tried; - for standard input [default: those of all running jobs].
    file: Option<String>,
    /// How long each probe may take, in seconds, up to 30.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    deadline: f64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    address: MasterAddress,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=30.0).contains(&seconds) => Ok(seconds),
        _ => Err("write a number of seconds from 0.1 to 30".to_owned()),
    }
}

/// `essaim doctor`.
///
/// # Errors
/// A link is broken; the file cannot be read; the master cannot be reached.
pub async fn run(args: DoctorArgs) -> Result<()> {
    let sql = args.file.as_deref().map(read).transpose()?;
    let deadline = Duration::from_secs_f64(args.deadline);
    let mut client = client::connect(&args.address).await?;
    // A call of its own: the examination itself takes as long as its slowest probe.
    let begun = Instant::now();
    client::answer(client.list(essaim_proto::v1::ListRequest {
        limit: 1,
        ..Default::default()
    }))
    .await?;
    let latency_ms = begun.elapsed().as_secs_f64() * 1000.0;
    let request = DoctorRequest {
        sql,
        deadline_ms: deadline.as_millis() as u64,
    };
    let call = client.doctor(request);
    let mut found = client::answer_within(2 * deadline + SLACK, call).await?;
    let own = own_links(&args.address.master, &found, now_ms(), latency_ms);
    found.links.splice(0..0, own);
    if args.json {
        job_json::print(&document(&found.links))?;
    } else {
        say(&report(&found.links))?;
    }
    verdict(&found.links)
}

/// What the client sees of the master.
fn own_links(master: &str, found: &DoctorResponse, now_ms: i64, latency_ms: f64) -> [Link; 2] {
    let link = |to: &str, status: LinkStatus, text: String| Link {
        from: "client".to_owned(),
        to: to.to_owned(),
        status: status as i32,
        latency_ms: None,
        text,
    };
    let own = essaim_proto::VERSION.as_str();
    let to = format!("master at {master}");
    let version = match found.version == own {
        true => link(&to, LinkStatus::Ok, format!("essaim {own}")),
        false => link(
            &to,
            LinkStatus::Warning,
            format!(
                "essaim {}, and this client is {own}: use the same version",
                found.version
            ),
        ),
    };
    let ahead = found.now_ms as f64 + latency_ms / 2.0 - now_ms as f64;
    let text = format!(
        "{:.0} ms {} this client's",
        ahead.abs(),
        if ahead < 0.0 { "behind" } else { "ahead of" }
    );
    let clock = match ahead.abs() - latency_ms > SKEW_MS {
        true => link(
            "clock of master",
            LinkStatus::Warning,
            format!("{text}: let both follow NTP"),
        ),
        false => link("clock of master", LinkStatus::Ok, text),
    };
    [
        Link {
            latency_ms: Some(latency_ms),
            ..version
        },
        clock,
    ]
}

fn verdict(links: &[Link]) -> Result<()> {
    let failed = |link: &&Link| link.status() == LinkStatus::Failed;
    match links.iter().filter(failed).count() {
        0 => Ok(()),
        1 => Err(Failure::Failed("1 link is broken".to_owned()).into()),
        count => Err(Failure::Failed(format!("{count} links are broken")).into()),
    }
}

fn word(status: LinkStatus) -> &'static str {
    match status {
        LinkStatus::Ok => "ok",
        LinkStatus::Warning => "warning",
        LinkStatus::Failed | LinkStatus::Unspecified => "failed",
    }
}

fn report(links: &[Link]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["FROM", "TO", "", "MS", ""]);
    if let Some(column) = table.column_mut(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for link in links {
        table.add_row([
            one_line(&link.from),
            one_line(&link.to),
            word(link.status()).to_owned(),
            link.latency_ms
                .map(|ms| format!("{ms:.1}"))
                .unwrap_or_default(),
            one_line(&link.text),
        ]);
    }
    table.trim_fmt()
}

fn document(links: &[Link]) -> Value {
    let all = links.iter().map(|link| {
        json!({
            "from": link.from,
            "to": link.to,
            "status": word(link.status()),
            "latency_ms": link.latency_ms,
            "text": link.text,
        })
    });
    json!({
        "ok": verdict(links).is_ok(),
        "links": all.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_or_a_version_that_differs_is_a_warning() {
        let found = |version: &str, now_ms| DoctorResponse {
            links: Vec::new(),
            version: version.to_owned(),
            now_ms,
        };
        let statuses = |found: DoctorResponse| {
            let links = own_links("http://m:1", &found, 100_000, 10.0);
            links.map(|link| link.status())
        };
        let own = essaim_proto::VERSION.as_str();
        assert_eq!(statuses(found(own, 100_000)), [LinkStatus::Ok; 2]);
        assert_eq!(statuses(found("9.9.9", 98_000)), [LinkStatus::Warning; 2]);
    }
}
