//! A scrape: asked for over HTTP, checked by promtool, and taken apart.

use anyhow::{Context, Result, ensure};
use essaim_tests::http;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

/// The samples of one or several pages.
#[derive(Debug, Default)]
pub struct Scrape(Vec<Sample>);

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Scrape {
    /// Asks for a page. With `check`, promtool looks it over.
    ///
    /// # Errors
    /// No page, or promtool finds fault with it.
    pub async fn of(address: SocketAddr, check: bool) -> Result<Self> {
        let (status, text) = http::get(address, "/metrics").await?;
        ensure!(status == 200, "GET /metrics: {status}: {text}");
        if check {
            promtool(&["check", "metrics"], &text)?;
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Ok(Self(samples.map(Sample::parse).collect::<Result<_>>()?))
    }

    /// Adds the samples of another page.
    pub fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The values of all samples of this name and these labels, which may have others besides.
    pub fn values(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let has = |sample: &&Sample| {
            let mut labels = labels.iter();
            sample.name == name
                && labels.all(|(name, value)| {
                    sample.labels.get(*name).map(String::as_str) == Some(*value)
                })
        };
        self.0.iter().filter(has).map(|s| s.value).collect()
    }

    /// The sum of [`Self::values`]; `None` if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let values = self.values(name, labels);
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// The names of all metrics: a histogram's samples count as one.
    pub fn names(&self) -> BTreeSet<String> {
        let histograms: BTreeSet<&str> = self
            .0
            .iter()
            .filter_map(|sample| sample.name.strip_suffix("_bucket"))
            .collect();
        let base = |name: &str| {
            let stripped = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            stripped
                .filter(|stripped| histograms.contains(stripped))
                .unwrap_or(name)
                .to_owned()
        };
        self.0.iter().map(|sample| base(&sample.name)).collect()
    }
}

impl Sample {
    /// Parses `name{label="value",…} number`.
    fn parse(line: &str) -> Result<Self> {
        let wrong = || format!("no sample: {line:?}");
        let (head, value) = line.rsplit_once(' ').with_context(wrong)?;
        let value = value.parse().with_context(wrong)?;
        let (name, labels) = match head.split_once('{') {
            None => (head, ""),
            Some((name, labels)) => (name, labels.strip_suffix('}').with_context(wrong)?),
        };
        let labels = labels
            .split_terminator("\",")
            .map(|label| {
                let (name, value) = label.split_once("=\"").with_context(wrong)?;
                Ok((name.to_owned(), value.trim_end_matches('"').to_owned()))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            name: name.to_owned(),
            labels,
            value,
        })
    }
}

/// Runs promtool with this input.
///
/// # Errors
/// It is missing, or ends with an error: what it says is in the message.
pub fn promtool(args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("there is no promtool: scripts/setup installs it (Debian's package prometheus)")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // It may end before it has read everything.
    let _ = writer.join();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.success(), "promtool {args:?}: {said}");
    Ok(())
}
