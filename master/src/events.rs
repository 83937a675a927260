//! What happened lately, for people: a bounded log in memory that registry, jobs, scheduler and streams write.

use crate::jobs::model::now_ms;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::VecDeque;
use tokio::sync::watch;

/// Events that are kept; the oldest go first.
pub const MAX_EVENTS_KEPT: usize = 1_000;
/// The longest message of an event, in characters.
const MAX_MESSAGE: usize = 1_000;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// This master has begun to serve.
    MasterStarted,
    /// Another master has taken over the state dir: this one must be stopped.
    StateDirLost,
    WorkerRegistered,
    /// A worker takes no new tasks.
    WorkerDraining,
    /// A worker has ended by itself.
    WorkerLeft,
    /// A worker was given up.
    WorkerLost,
    JobSubmitted,
    JobStarted,
    /// Somebody asked a streaming job to end after its epoch.
    JobStopping,
    /// Somebody asked for a job's end.
    JobCancelling,
    JobEnded,
    /// An attempt of a task failed, or its worker was lost. There is another one, unless the job fails.
    TaskFailed,
    /// An exchange starts again as a whole.
    ExchangeRetried,
    /// An epoch failed and is tried again.
    EpochFailed,
    /// Epochs wait for the state dir.
    EpochWaits,
    /// The server of a source that is asked, as of an HTTP feed, does not answer, and is asked again.
    SourceSilent,
}

/// How much an event or a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Counts from 1 since the master's start.
    pub id: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub at_ms: i64,
    pub kind: EventKind,
    pub severity: Severity,
    /// The id of the job that it is about.
    pub job: Option<String>,
    /// The id of the worker that it is about.
    pub worker: Option<String>,
    pub message: String,
}

/// The log.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<VecDeque<Event>>,
    /// The id of the last event.
    last: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            last: watch::Sender::new(0),
        }
    }
}

impl Events {
    /// Writes an event about neither a job nor a worker.
    pub fn note(&self, kind: EventKind, severity: Severity, message: impl Into<String>) {
        self.write(kind, severity, None, None, message);
    }

    /// Writes an event. Passwords must not be in the message; a long one is cut.
    pub fn write(
        &self,
        kind: EventKind,
        severity: Severity,
        job: Option<&str>,
        worker: Option<&str>,
        message: impl Into<String>,
    ) {
        let mut kept = self.kept.lock();
        let id = kept.back().map_or(1, |last| last.id + 1);
        if kept.len() >= MAX_EVENTS_KEPT {
            kept.pop_front();
        }
        kept.push_back(Event {
            id,
            at_ms: now_ms(),
            kind,
            severity,
            job: job.map(str::to_owned),
            worker: worker.map(str::to_owned),
            message: shortened(message.into(), MAX_MESSAGE),
        });
        // Under the lock, so that the number never goes back.
        self.last.send_replace(id);
    }

    /// The events behind number `after` that `wanted` takes, at most `limit`, the newest of them; by number.
    pub fn after(&self, after: u64, limit: usize, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let kept = self.kept.lock();
        let newest = kept.iter().rev().take_while(|event| event.id > after);
        let mut found: Vec<Event> = newest
            .filter(|event| wanted(event))
            .take(limit)
            .cloned()
            .collect();
        found.reverse();
        found
    }

    /// The number of the last event; 0 before the first.
    pub fn last(&self) -> u64 {
        *self.last.borrow()
    }
}

/// A text cut to so many characters.
pub(crate) fn shortened(mut text: String, characters: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(characters) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_kept_and_the_newest_are_shown() {
        let events = Events::default();
        let last = MAX_EVENTS_KEPT as u64 + 5;
        for number in 1..=last {
            let job = if number % 2 == 0 { "even" } else { "odd" };
            let kind = EventKind::JobSubmitted;
            events.write(kind, Severity::Info, Some(job), None, number.to_string());
        }
        let numbers = |found: Vec<Event>| found.iter().map(|e| e.id).collect::<Vec<_>>();
        let all = numbers(events.after(0, usize::MAX, |_| true));
        assert_eq!((all.len(), all[0]), (MAX_EVENTS_KEPT, 6));
        assert_eq!(events.last(), last);
        let even = |event: &Event| event.job.as_deref() == Some("even");
        assert_eq!(numbers(events.after(0, 2, even)), [last - 3, last - 1]);
        assert!(events.after(last, 10, |_| true).is_empty());
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(shortened("añb".to_owned(), 2), "añ…");
        assert_eq!(shortened("añb".to_owned(), 3), "añb");
    }
}
