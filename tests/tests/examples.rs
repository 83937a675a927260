//! Each pipeline of examples/ in its short form, as `make examples` runs the long one: services, input, jobs, a worker and the
//! master killed in the middle, results compared with an independent computation, plots.

use anyhow::{Context, Result, ensure};
use essaim_tests::cluster::binary;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

/// One at a time: each brings a cluster of its own.
static TURN: Mutex<()> = Mutex::new(());

/// Runs `examples/NAME/run --short` and wants it to succeed.
fn run(name: &str) -> Result<()> {
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let program = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
        .join("run");
    let output = Command::new(&program)
        .args(["--short", "--quiet"])
        .env("ESSAIM_BIN", binary()?)
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{name}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

#[test]
fn dirty_sales_are_cleaned_into_two_tables_that_agree_with_postgres_to_the_last_digit() -> Result<()>
{
    run("sales")
}

#[test]
fn a_timeline_becomes_tables_as_it_comes_and_a_history() -> Result<()> {
    run("mastodon")
}

#[test]
fn the_topic_and_mongodb_say_the_same_of_the_weather() -> Result<()> {
    run("weather")
}

#[test]
fn cars_that_are_played_meet_the_news_of_their_makers() -> Result<()> {
    run("cars")
}

#[test]
fn snapshots_in_a_bucket_are_read_as_they_appear() -> Result<()> {
    run("markets")
}

#[test]
fn readings_of_devices_are_exploded_into_files_and_one_that_grows_each_once() -> Result<()> {
    run("devices")
}
