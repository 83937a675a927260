//! What a process can reach, and what it stands on: the rows of `essaim doctor`, seen from the master or a worker.

use crate::check::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::redact;
use datafusion::execution::memory_pool::MemoryLimit;
use datafusion::execution::runtime_env::RuntimeEnv;
use essaim_proto::v1;
use futures::StreamExt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Endpoints that are tried at a time.
const AT_A_TIME: usize = 32;
/// Endpoints, or other workers, that one process looks at.
pub const MAX_TARGETS: usize = 256;
/// Less free space than this is a warning; bytes.
const LITTLE_SPACE: u64 = 1 << 30;
/// So little that the next spill or checkpoint may fail.
const NO_SPACE: u64 = 64 << 20;
/// Open files that a process should be allowed: each broker, database and worker takes a few.
const FEW_FILES: u64 = 1_024;

/// A row that holds no time.
pub fn fact(to: impl Into<String>, status: v1::LinkStatus, text: impl Into<String>) -> v1::Link {
    v1::Link {
        from: String::new(),
        to: to.into(),
        status: status as i32,
        latency_ms: None,
        text: redact(&text.into()),
    }
}

/// Tries something for so long, and says how it went and how long it took.
pub async fn timed(
    to: impl Into<String>,
    deadline: Duration,
    work: impl Future<Output = Result<String>>,
) -> v1::Link {
    let begun = Instant::now();
    let outcome = match tokio::time::timeout(deadline, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::unavailable(format!(
            "no answer within {:.1} s: is the way there open?",
            deadline.as_secs_f64()
        ))),
    };
    let (status, text) = match outcome {
        Ok(text) => (v1::LinkStatus::Ok, text),
        Err(error) => (v1::LinkStatus::Failed, error.to_string()),
    };
    v1::Link {
        latency_ms: Some(begun.elapsed().as_secs_f64() * 1000.0),
        ..fact(to, status, text)
    }
}

/// Tries to reach endpoints, all at once.
pub async fn endpoints(endpoints: Vec<Endpoint>, deadline: Duration) -> Vec<v1::Link> {
    let endpoints = endpoints.into_iter().take(MAX_TARGETS);
    let tried = endpoints.map(|endpoint| async move {
        let to = endpoint.name.clone();
        timed(to, deadline, endpoint.reach(deadline)).await
    });
    futures::stream::iter(tried)
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await
}

/// What this process stands on: the space in `folders` (each with its use), files and memory that it may take.
pub async fn host(
    runtime: &RuntimeEnv,
    folders: Vec<(&'static str, PathBuf)>,
    deadline: Duration,
) -> Vec<v1::Link> {
    let reserved = match runtime.memory_pool.memory_limit() {
        MemoryLimit::Finite(bytes) => Some(bytes as u64),
        _ => None,
    };
    // A folder of a file server that is away blocks whoever asks for it.
    let look = tokio::task::spawn_blocking(move || {
        let mut facts: Vec<v1::Link> = Vec::new();
        for (purpose, folder) in folders {
            facts.push(space(purpose, &folder));
        }
        facts.extend(open_files());
        facts.extend(memory(reserved));
        facts
    });
    match tokio::time::timeout(deadline, look).await {
        Ok(Ok(facts)) => facts,
        Ok(Err(_)) | Err(_) => vec![fact(
            "disk space",
            v1::LinkStatus::Failed,
            format!(
                "the folders for spilled rows and state do not answer within {:.1} s: is one of them on a file server that is away?",
                deadline.as_secs_f64()
            ),
        )],
    }
}

fn space(purpose: &str, folder: &Path) -> v1::Link {
    let to = format!("{purpose} {}", folder.display());
    let found = match rustix::fs::statvfs(folder) {
        Ok(found) => found,
        Err(error) => {
            let error = std::io::Error::from(error);
            return fact(
                to,
                v1::LinkStatus::Failed,
                format!("{error}: make the folder"),
            );
        }
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let all = found.f_blocks.saturating_mul(found.f_frsize);
    let text = format!("{} free of {}", size(free), size(all));
    match free {
        _ if free < NO_SPACE => fact(
            to,
            v1::LinkStatus::Failed,
            format!("{text}: free some, or use another folder"),
        ),
        _ if free < LITTLE_SPACE => fact(
            to,
            v1::LinkStatus::Warning,
            format!("{text}: free some, or use another folder"),
        ),
        _ => fact(to, v1::LinkStatus::Ok, text),
    }
}

/// Nothing where the system does not tell.
fn open_files() -> Option<v1::Link> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))?;
    let soft = line.split_whitespace().nth(3)?;
    let open = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    let text = format!("{open} of {soft} are open");
    let limit: u64 = soft.parse().unwrap_or(u64::MAX);
    let is_tight = limit < FEW_FILES || open > limit / 5 * 4;
    Some(match is_tight {
        true => fact(
            "open files",
            v1::LinkStatus::Warning,
            format!(
                "{text}: raise the limit (ulimit -n, LimitNOFILE=) to {} or more",
                4 * FEW_FILES
            ),
        ),
        false => fact("open files", v1::LinkStatus::Ok, text),
    })
}

/// What the operators may reserve (`--memory`), beside what the machine or the control group allows.
fn memory(reserved: Option<u64>) -> Option<v1::Link> {
    let reserved = reserved?;
    let (limit, whose) = match (cgroup_limit(), machine_memory()) {
        (Some(cgroup), Some(machine)) if cgroup < machine => (cgroup, "the control group"),
        (Some(cgroup), None) => (cgroup, "the control group"),
        (_, Some(machine)) => (machine, "the machine"),
        (None, None) => return None,
    };
    let text = format!(
        "--memory {} of {} that {whose} has",
        size(reserved),
        size(limit)
    );
    // Connections, decoded batches and code come on top of what operators reserve.
    Some(match reserved > limit / 10 * 8 {
        true => fact(
            "memory",
            v1::LinkStatus::Warning,
            format!(
                "{text}: the system may kill the process; lower --memory to {} or less, or give it more",
                size(limit / 10 * 8)
            ),
        ),
        false => fact("memory", v1::LinkStatus::Ok, text),
    })
}

fn machine_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// The lowest limit of the control groups that this process is in; version 2, else version 1.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let folder = Path::new("/sys/fs/cgroup").join(own.unwrap_or_default());
    let above = folder
        .ancestors()
        .take_while(|above| above.starts_with("/sys/fs/cgroup"));
    let files = above.map(|above| above.join("memory.max"));
    let files = files.chain([PathBuf::from("/sys/fs/cgroup/memory/memory.limit_in_bytes")]);
    files
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok())
        .min()
}

fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

/// What a call to another process of the cluster ended with, its cause in front.
pub fn call_error(status: &tonic::Status) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    let mut deepest = None;
    while let Some(error) = cause {
        deepest = Some(error.to_string());
        cause = error.source();
    }
    let message = deepest.unwrap_or_else(|| status.message().to_owned());
    Error::new(ErrorKind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test that unwraps says where it failed.
    use super::*;

    #[tokio::test]
    async fn what_does_not_answer_is_given_up_in_time() {
        let link = timed("x", Duration::from_millis(20), std::future::pending()).await;
        assert_eq!(link.status(), v1::LinkStatus::Failed);
        assert!(link.latency_ms.unwrap() >= 20.0);
        assert!(
            link.text.contains("no answer within 0.0 s"),
            "{}",
            link.text
        );
    }

    #[test]
    fn too_much_memory_is_a_warning() {
        assert_eq!(
            memory(Some(1 << 60)).unwrap().status(),
            v1::LinkStatus::Warning
        );
        assert_eq!(memory(Some(1 << 20)).unwrap().status(), v1::LinkStatus::Ok);
    }

    #[test]
    fn a_folder_that_is_not_there_has_no_space() {
        let link = space("spilled rows in", Path::new("/nowhere/at/all"));
        assert_eq!(link.status(), v1::LinkStatus::Failed);
        assert!(open_files().is_some());
    }
}
