//! A journal against a model: restarts at any point, old masters that go on, objects that are left over or gone.

use super::*;
use essaim_common::ErrorKind;
use essaim_common::journal::{Journal, Journaled, Journals, MAX_ENTRY_BYTES};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const JOB: &str = "job";

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The current master, or the one before it, adds so many entries.
    Append {
        old: bool,
        entries: usize,
    },
    /// It forgets so much of what there is, in hundredths.
    Compact {
        old: bool,
        part: i64,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (prop::bool::weighted(0.2), 0..5_usize).prop_map(|(old, entries)| Step::Append { old, entries }),
        2 => (prop::bool::weighted(0.2), 0..100_i64).prop_map(|(old, part)| Step::Compact { old, part }),
        1 => Just(Step::Restart),
    ]
}

async fn state_dir(path: &Path) -> Arc<StateDir> {
    StateDir::open(path.to_str().unwrap()).await.unwrap()
}

/// Opens the job's checkpoint and then the journal of a table, as the start of a job does.
async fn open(dir: &Arc<StateDir>, generation: u64) -> Result<(Arc<dyn Journal>, Journaled)> {
    Checkpoint::open(dir, JOB, generation).await?;
    TableJournals::new(dir, JOB, "feed", generation)
        .open()
        .await
}

fn entries(texts: &[String]) -> Vec<Bytes> {
    texts.iter().map(|text| Bytes::from(text.clone())).collect()
}

async fn follow(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let dir = state_dir(folder.path()).await;
    let mut generation = 1;
    let (mut journal, found) = open(&dir, generation).await.unwrap();
    assert_eq!(found, Journaled::default());
    let mut old: Option<Arc<dyn Journal>> = None;
    let mut kept: Vec<String> = Vec::new();
    let mut below = 0_i64;
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Append {
                old: true,
                entries: count,
            } => {
                if let Some(old) = &old {
                    let texts: Vec<String> =
                        (0..count).map(|i| format!("old {number} {i}")).collect();
                    old.append(&entries(&texts)).await.unwrap();
                }
            }
            Step::Append { entries: count, .. } => {
                let texts: Vec<String> = (0..count).map(|i| format!("{number} {i}")).collect();
                let end = journal.append(&entries(&texts)).await.unwrap();
                kept.extend(texts);
                assert_eq!(end, kept.len() as i64);
            }
            Step::Compact { old: true, part } => {
                if let Some(old) = &old {
                    let to = below * part / 100;
                    // It may have forgotten as much before; otherwise it is refused.
                    let _ = old.compact(to, Bytes::from_static(b"old")).await;
                }
            }
            Step::Compact { part, .. } => {
                let to = below + (kept.len() as i64 - below) * part / 100;
                let summary = Bytes::from(format!("before {to}"));
                journal.compact(to, summary).await.unwrap();
                below = below.max(to);
            }
            Step::Restart => {
                generation += 1;
                let (next, found) = open(&dir, generation).await.unwrap();
                assert_eq!(found.first, below);
                assert_eq!(found.end(), kept.len() as i64);
                assert_eq!(found.entries, entries(&kept[below as usize..]));
                if below > 0 {
                    assert_eq!(found.summary, Some(Bytes::from(format!("before {below}"))));
                }
                old = Some(std::mem::replace(&mut journal, next));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn restarts_and_old_masters_change_nothing_in_a_journal(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(follow(steps));
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(folder).unwrap();
    let mut found: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[tokio::test]
async fn entries_that_a_compaction_left_over_are_not_seen_again() {
    let folder = tempfile::tempdir().unwrap();
    let dir = state_dir(folder.path()).await;
    let (journal, _) = open(&dir, 1).await.unwrap();
    for text in ["a", "b", "c"] {
        journal.append(&[Bytes::from(text)]).await.unwrap();
    }
    let place = folder
        .path()
        .join("checkpoint/job/sources/table-feed/entries");
    let before: Vec<(PathBuf, Vec<u8>)> = files(&place)
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    journal.compact(2, Bytes::from_static(b"ab")).await.unwrap();
    assert_eq!(files(&place).len(), 1);
    for (path, content) in before {
        std::fs::write(path, content).unwrap();
    }
    let (journal, found) = open(&dir, 2).await.unwrap();
    assert_eq!((found.first, found.entries), (2, vec![Bytes::from("c")]));
    // The next compaction takes them along.
    journal
        .compact(3, Bytes::from_static(b"abc"))
        .await
        .unwrap();
    assert_eq!(files(&place), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_old_master_removes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = state_dir(folder.path()).await;
    let (old, _) = open(&dir, 1).await.unwrap();
    old.append(&[Bytes::from("a"), Bytes::from("b")])
        .await
        .unwrap();
    let (_, found) = open(&dir, 2).await.unwrap();
    assert_eq!(found.entries.len(), 2);
    let error = old.compact(2, Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.to_string().contains("another master has taken over"),
        "{error}"
    );
    let (_, found) = open(&dir, 3).await.unwrap();
    assert_eq!((found.end(), found.first, found.summary), (2, 0, None));
}

#[tokio::test]
async fn a_lost_object_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = state_dir(folder.path()).await;
    let (journal, _) = open(&dir, 1).await.unwrap();
    for text in ["a", "b", "c"] {
        journal.append(&[Bytes::from(text)]).await.unwrap();
    }
    let place = folder
        .path()
        .join("checkpoint/job/sources/table-feed/entries");
    std::fs::remove_file(&files(&place)[1]).unwrap();
    let error = open(&dir, 2).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{:020}.{:020}", 2, 1)), "{error}");
    assert!(error.contains("entry 0 is the last before it"), "{error}");
}

#[tokio::test]
async fn an_entry_that_is_too_large_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = state_dir(folder.path()).await;
    let (journal, _) = open(&dir, 1).await.unwrap();
    let large = Bytes::from(vec![0; MAX_ENTRY_BYTES + 1]);
    let error = journal
        .append(&[Bytes::from("a"), large])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(journal.append(&[Bytes::from("b")]).await.unwrap(), 1);
}

#[test]
fn each_table_has_a_place_of_its_own() {
    let names = ["feed", "Feed", "a/b", "..", "hex-61", "", "a b"];
    let places: BTreeSet<String> = names.iter().map(|name| names::journal(JOB, name)).collect();
    assert_eq!(places.len(), names.len());
    assert!(
        places
            .iter()
            .all(|place| !place.contains("..") && place.split('/').count() == 4)
    );
}
