//! A checkpoint against a model: crashes at any point, old masters that go on, broken objects.

use super::*;
use essaim_common::ErrorKind;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const JOB: &str = "job";

/// A master that runs the job, with what it believes.
#[derive(Debug)]
struct Writer {
    checkpoint: Checkpoint,
    plans: BTreeMap<u64, EpochPlan>,
    committed: u64,
    state: String,
}

fn delta(plan: &EpochPlan) -> String {
    format!("{}:{};", plan.epoch, plan.time_ms)
}

fn plan(epoch: u64, time_ms: i64) -> EpochPlan {
    EpochPlan {
        epoch,
        time_ms,
        tables: BTreeMap::from([("t".to_owned(), TablePlan::default())]),
    }
}

async fn state_dir(path: &Path) -> Arc<StateDir> {
    StateDir::open(path.to_str().unwrap()).await.unwrap()
}

impl Writer {
    async fn open(dir: &Arc<StateDir>, generation: u64) -> Result<Self> {
        let (checkpoint, restored) = Checkpoint::open(dir, JOB, generation).await?;
        let mut state: Vec<u8> = Vec::new();
        for (operator, chunks) in &restored.snapshot {
            assert_eq!(operator, "op");
            state.extend(chunks.iter().flatten());
        }
        for (_, parts) in &restored.deltas {
            state.extend(parts.iter().flat_map(|(_, bytes)| bytes));
        }
        let plans = restored.planned.into_iter().map(|plan| (plan.epoch, plan));
        Ok(Self {
            checkpoint,
            plans: plans.collect(),
            committed: restored.committed.map_or(0, |commit| commit.epoch),
            state: String::from_utf8(state).unwrap(),
        })
    }

    async fn plan(&mut self, time_ms: i64) {
        let planned = self.plans.keys().last().copied();
        let next = planned.unwrap_or(0).max(self.committed) + 1;
        let plan = plan(next, time_ms);
        let held = self.checkpoint.write_plan(&plan).await.unwrap();
        assert_eq!(held, plan);
        self.plans.insert(next, plan);
    }

    async fn commit(&mut self) {
        let Some(plan) = self.plans.get(&(self.committed + 1)) else {
            return;
        };
        let delta = delta(plan);
        let commit = EpochCommit {
            epoch: plan.epoch,
            ..EpochCommit::default()
        };
        let parts = vec![("op".to_owned(), Bytes::from(delta.clone()))];
        self.checkpoint.commit(&commit, parts).await.unwrap();
        self.committed += 1;
        self.state.push_str(&delta);
    }

    async fn snapshot(&mut self) {
        if self.committed == 0 {
            return;
        }
        while !self.checkpoint.collect_snapshot().await {
            tokio::task::yield_now().await;
        }
        let (one, two) = self.state.split_at(self.state.len() / 2);
        let chunks = [one, two].map(|chunk| Bytes::from(chunk.to_owned()));
        let state = vec![("op".to_owned(), chunks.to_vec())];
        self.checkpoint.snapshot(move || Ok(state)).await.unwrap();
    }

    async fn settle(&mut self) {
        self.checkpoint.flush().await.unwrap();
        while !self.checkpoint.collect_snapshot().await {
            tokio::task::yield_now().await;
        }
    }

    /// Epochs up to one, each planned and committed.
    async fn run_to(&mut self, epoch: u64) {
        while self.committed < epoch {
            self.plan(self.committed as i64).await;
            self.commit().await;
        }
        self.settle().await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Plan(i64),
    Commit,
    Snapshot,
    /// The master ends, with or without the last write, and maybe only sleeps.
    Restart {
        settled: bool,
        sleeps: bool,
    },
    /// A master that slept goes on.
    Zombie {
        which: usize,
        step: u8,
        time_ms: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<i64>().prop_map(Step::Plan),
        4 => Just(Step::Commit),
        1 => Just(Step::Snapshot),
        1 => any::<(bool, bool)>().prop_map(|(settled, sleeps)| Step::Restart { settled, sleeps }),
        3 => any::<(usize, u8, i64)>()
            .prop_map(|(which, step, time_ms)| Step::Zombie { which, step, time_ms }),
    ]
}

async fn follow(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let dir = state_dir(folder.path()).await;
    let mut generation = 1;
    let mut now = Writer::open(&dir, generation).await.unwrap();
    let mut zombies: Vec<Writer> = Vec::new();
    let end = Step::Restart {
        settled: true,
        sleeps: false,
    };
    for step in steps.into_iter().chain([end]) {
        match step {
            Step::Plan(time_ms) => now.plan(time_ms).await,
            Step::Commit => now.commit().await,
            Step::Snapshot => now.snapshot().await,
            Step::Restart { settled, sleeps } => {
                if settled {
                    now.settle().await;
                }
                generation += 1;
                let next = Writer::open(&dir, generation).await.unwrap();
                // Only the commit that was on its way may be missing.
                let least = now.committed - u64::from(!settled && now.committed > 0);
                assert!((least..=now.committed).contains(&next.committed));
                let kept = now.state.split_inclusive(';').take(next.committed as usize);
                assert_eq!(next.state, kept.collect::<String>());
                let planned = now.plans.range(next.committed + 1..);
                let planned: BTreeMap<_, _> = planned.map(|(e, plan)| (*e, plan.clone())).collect();
                assert_eq!(next.plans, planned);
                let old = std::mem::replace(&mut now, next);
                if sleeps {
                    zombies.push(old);
                }
            }
            Step::Zombie {
                which,
                step,
                time_ms,
            } => {
                let count = zombies.len();
                if let Some(zombie) = zombies.get_mut(which % count.max(1)) {
                    match step % 5 {
                        0 | 1 => zombie.plan(time_ms).await,
                        2 | 3 => zombie.commit().await,
                        _ => zombie.snapshot().await,
                    }
                    zombie.settle().await;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn restarts_and_old_masters_lose_and_change_nothing(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(follow(steps));
    }
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn decodes(path: &Path, bytes: Vec<u8>) -> bool {
    let bytes = Bytes::from(bytes);
    let kind = match path
        .parent()
        .unwrap()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
    {
        "generations" => Kind::Generation,
        "plans" => Kind::Plan,
        "commits" => Kind::Commit,
        "snapshots" => Kind::Snapshot,
        _ => Kind::Fingerprint,
    };
    frame::decode::<serde_json::Value>(kind, bytes).is_ok()
}

#[tokio::test]
async fn a_flipped_bit_and_a_cut_anywhere_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(&state_dir(folder.path()).await, 1)
        .await
        .unwrap();
    let fingerprint = serde_json::json!({"sources": ["t"]});
    writer
        .checkpoint
        .write_fingerprint(&fingerprint)
        .await
        .unwrap();
    writer.run_to(2).await;
    writer.snapshot().await;
    writer.settle().await;
    let files = files(folder.path());
    assert_eq!(files.len(), 7);
    for path in files {
        let whole = std::fs::read(&path).unwrap();
        assert!(decodes(&path, whole.clone()));
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                assert!(
                    !decodes(&path, flipped),
                    "{} byte {at} bit {bit}",
                    path.display()
                );
            }
            assert!(!decodes(&path, whole[..at].to_vec()));
        }
    }
}

fn break_object(folder: &Path, name: &str) {
    let path = folder.join("checkpoint").join(JOB).join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn object(kind: &str, epoch: u64) -> String {
    format!("{kind}/{epoch:020}.{:020}", 1)
}

#[tokio::test]
async fn a_broken_object_matters_only_if_it_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = state_dir(folder.path()).await;
    let mut writer = Writer::open(&dir, 1).await.unwrap();
    for epoch in [3, 6] {
        writer.run_to(epoch).await;
        writer.snapshot().await;
    }
    writer.run_to(8).await;
    writer.plan(99).await;

    // The snapshot after it stands in for it.
    break_object(folder.path(), &object("commits", 5));
    let next = Writer::open(&dir, 2).await.unwrap();
    assert_eq!((next.committed, &next.state), (8, &writer.state));
    break_object(folder.path(), &object("commits", 5));

    break_object(folder.path(), &object("snapshots", 6));
    let next = Writer::open(&dir, 3).await.unwrap();
    assert_eq!((next.committed, &next.state), (8, &writer.state));
    assert_eq!(next.plans[&9].time_ms, 99);

    for name in [object("commits", 7), object("plans", 9)] {
        break_object(folder.path(), &name);
        let error = Writer::open(&dir, 4).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains(&name), "{error}");
        assert!(error.to_string().contains("checksum"), "{error}");
        break_object(folder.path(), &name);
    }
    let missing = folder
        .path()
        .join("checkpoint")
        .join(JOB)
        .join(object("commits", 7));
    std::fs::remove_file(missing).unwrap();
    let error = Writer::open(&dir, 4).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("are missing"), "{error}");
}

#[tokio::test]
async fn a_generation_is_opened_once_and_never_after_a_higher_one() {
    let folder = tempfile::tempdir().unwrap();
    let dir = state_dir(folder.path()).await;
    Writer::open(&dir, 5).await.unwrap();
    for generation in [4, 5] {
        let error = Writer::open(&dir, generation).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("another master"), "{error}");
    }
}

#[tokio::test]
async fn what_lies_before_the_last_two_snapshots_goes() {
    let folder = tempfile::tempdir().unwrap();
    let dir = state_dir(folder.path()).await;
    let mut writer = Writer::open(&dir, 1).await.unwrap();
    for epoch in [3, 6, 9] {
        writer.run_to(epoch).await;
        writer.snapshot().await;
        writer.settle().await;
    }
    let mut expected: Vec<String> = (7..=9).map(|epoch| object("commits", epoch)).collect();
    expected.push(format!("generations/{:020}", 1));
    expected.extend((7..=9).map(|epoch| object("plans", epoch)));
    expected.extend([6, 9].map(|epoch| object("snapshots", epoch)));
    let root = folder.path().join("checkpoint").join(JOB);
    let there: Vec<String> = files(&root)
        .iter()
        .map(|path| {
            path.strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(there, expected);

    discard(&dir, JOB).await.unwrap();
    assert!(!root.exists());
    let fresh = Writer::open(&dir, 2).await.unwrap();
    assert_eq!((fresh.committed, fresh.state.as_str()), (0, ""));
}

#[tokio::test]
async fn a_commit_that_fails_is_kept_until_the_state_dir_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let (there, away) = (folder.path().join("state"), folder.path().join("away"));
    let dir = state_dir(&there).await;
    let mut writer = Writer::open(&dir, 1).await.unwrap();
    writer.run_to(1).await;
    writer.plan(5).await;
    std::fs::rename(&there, &away).unwrap();
    writer.commit().await;
    for _ in 0..2 {
        let error = writer.checkpoint.flush().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(
            error.to_string().contains(there.to_str().unwrap()),
            "{error}"
        );
    }
    let error = writer.checkpoint.write_plan(&plan(3, 0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    std::fs::rename(&away, &there).unwrap();
    writer.run_to(3).await;
    let next = Writer::open(&dir, 2).await.unwrap();
    assert_eq!((next.committed, &next.state), (3, &writer.state));
}

#[tokio::test]
async fn files_are_whole_and_only_for_their_owner() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("state");
    let dir = state_dir(&root).await;
    let mut writer = Writer::open(&dir, 1).await.unwrap();
    writer.run_to(1).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for path in files(&root) {
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
    }
    assert_eq!(mode(&root), 0o700);
    let half = root
        .join("checkpoint")
        .join(JOB)
        .join(object("commits", 2) + "#17");
    std::fs::write(&half, "ESS").unwrap();
    let next = Writer::open(&dir, 2).await.unwrap();
    assert_eq!(next.committed, 1);
    assert!(!half.exists());
}
