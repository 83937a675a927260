//! Log lines as flat JSON objects: the fields of the spans around a line stand beside its own, so that a job's lines are
//! found by their field `job` whoever wrote them.

use serde_json::{Map, Value};
use std::fmt;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// One line: `{"timestamp":…,"level":…,"target":…,"message":…,` and then the fields.
pub(super) struct Flat;

impl<S> FormatEvent<S, JsonFields> for Flat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        // The outermost first: what is nearer to the line is more exact.
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|s| s.from_root())
        {
            let extensions = span.extensions();
            let written = extensions.get::<FormattedFields<JsonFields>>();
            if let Some(written) = written
                && let Ok(known) = serde_json::from_str::<Map<String, Value>>(&written.fields)
            {
                fields.0.extend(known);
            }
        }
        event.record(&mut fields);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let message = fields.0.remove("message").unwrap_or_default();
        let metadata = event.metadata();
        let head = [
            ("timestamp", Value::from(time)),
            ("level", Value::from(metadata.level().as_str())),
            ("target", Value::from(metadata.target())),
            ("message", message),
        ];
        let rest = fields.0.iter().map(|(name, value)| (name.as_str(), value));
        let head = head.iter().map(|(name, value)| (*name, value));
        for (at, (name, value)) in head.chain(rest).enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            write!(writer, "{before}{}:{value}", Value::from(name))?;
        }
        writeln!(writer, "}}")
    }
}

/// The fields of a line, by name.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::io;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_carries_the_fields_of_the_spans_around_it() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .fmt_fields(JsonFields::default())
            .event_format(Flat)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let epoch = tracing::error_span!("epoch", job = "j", epoch = 7, task = 0);
            let _epoch = epoch.entered();
            let task = tracing::error_span!("task", task = 3, attempt = 1);
            task.in_scope(|| tracing::warn!(error = %"it \"broke\"", "failed\nhere"));
        });
        let bytes = lines.0.lock().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("{\"timestamp\":\""), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "failed\nhere");
        assert_eq!(line["error"], "it \"broke\"");
        assert_eq!(line["job"], "j");
        assert_eq!(line["epoch"], 7);
        assert_eq!(line["task"], 3);
        assert_eq!(line["attempt"], 1);
    }
}
