//! Logs of a process, on standard error.

mod json;

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::JsonFields;

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
}

impl Logging {
    /// A client's: its results and errors are its output.
    pub const QUIET: Self = Self {
        format: LogFormat::Text,
        default_filter: "error",
    };
}

/// Starts logging, once in a process.
pub fn init(logging: &Logging) {
    let filter = ["ESSAIM_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .map_or_else(
            || EnvFilter::new(logging.default_filter),
            EnvFilter::new::<String>,
        );
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match logging.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder
            .fmt_fields(JsonFields::default())
            .event_format(json::Flat)
            .init(),
    }
}
