//! Logs of a process, on standard error, and its spans on their way to a collector.

mod json;
mod lines;
mod otlp;

use lines::Lines;
use otlp::Export;
use std::io::IsTerminal;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How each line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What a process logs unless `ESSAIM_LOG` or `RUST_LOG` says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Logging {
    pub format: LogFormat,
    pub default_filter: &'static str,
    /// What the process is called in traces; a process without a name sends none.
    pub service: Option<&'static str>,
}

impl Logging {
    /// A client's: its results and errors are its output.
    pub const QUIET: Self = Self {
        format: LogFormat::Text,
        default_filter: "error",
        service: None,
    };
}

/// Logging that has started. [`Self::end`] it before the process ends.
#[derive(Debug)]
pub struct Started {
    export: Option<Export>,
    lines: Lines,
}

impl Started {
    /// Sends the spans that still wait, for two seconds at most, and writes the lines that do, for one.
    pub fn end(self) {
        if let Some(export) = self.export {
            export.end();
        }
        self.lines.end();
    }
}

/// Starts logging, once in a process, in the context of its runtime.
pub fn init(logging: &Logging) -> Started {
    let filter = ["ESSAIM_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .map_or_else(
            || EnvFilter::new(logging.default_filter),
            EnvFilter::new::<String>,
        );
    let (writer, written) = Lines::start();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match logging.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines
            .fmt_fields(JsonFields::default())
            .event_format(json::Flat)
            .boxed(),
    };
    let export = logging.service.map_or(Ok(None), otlp::start);
    let (export, trouble) = match export {
        Ok(export) => (export, None),
        Err(error) => (None, Some(error)),
    };
    tracing_subscriber::registry()
        .with(export.as_ref().map(Export::layer))
        .with(lines.with_filter(filter))
        .init();
    if let Some(error) = trouble {
        // Nobody shall be without a job because of its traces.
        tracing::error!(%error, "no traces are sent: the variables OTEL_EXPORTER_OTLP_… are wrong");
    }
    Started {
        export,
        lines: written,
    }
}
