//! What processes take: memory and processor time from `/proc`, spill files from their folder.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Clock ticks a second in `/proc/PID/stat`: 100 on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// A field of `/proc/PID/status` that is given in kB, in MiB: `VmRSS` is resident now, `VmHWM` was at most.
///
/// # Errors
/// The process has ended.
pub fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.trim().strip_suffix("kB")?.trim().parse().ok())
        .with_context(|| format!("{path} has no {field}"))?;
    Ok(kib / 1024.0)
}

/// Processor time that a process has taken so far, in user and kernel mode, s.
///
/// # Errors
/// The process has ended.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // "PID (NAME) STATE …", where the name may hold anything; utime and stime are fields 14 and 15 of the line.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok((user + system) / TICKS),
        _ => anyhow::bail!("{path} has no times"),
    }
}

/// The same of several processes together.
///
/// # Errors
/// One of them has ended.
pub fn cpu_seconds_of(pids: Vec<u32>) -> Result<f64> {
    pids.into_iter().map(cpu_seconds).sum()
}

/// Watches how large a folder becomes.
#[derive(Debug)]
pub struct FolderWatch {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FolderWatch {
    /// Watches from now on, fifty times a second.
    pub fn start(folder: PathBuf) -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (most, stop) = (Arc::clone(&most), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    most.fetch_max(files(&folder).1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Self {
            most,
            stop,
            thread: Some(thread),
        }
    }

    /// The largest size seen so far, MiB.
    pub fn most_mib(&self) -> f64 {
        self.most.load(Ordering::Relaxed) as f64 / (1 << 20) as f64
    }
}

impl Drop for FolderWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say, and a bench need not fail for it.
            let _ = thread.join();
        }
    }
}

/// How many files are below a folder, and their bytes. What vanishes while it is looked at counts as nothing.
pub fn files(folder: &Path) -> (u64, u64) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.fold((0, 0), |(count, bytes), entry| match entry.metadata() {
        Ok(data) if data.is_dir() => {
            let below = files(&entry.path());
            (count + below.0, bytes + below.1)
        }
        Ok(data) => (count + 1, bytes + data.len()),
        Err(_) => (count, bytes),
    })
}
