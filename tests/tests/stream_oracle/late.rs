//! Streams with late rows: from the offsets that each epoch read, a model tells its watermark, which rows were late, and
//! what every window holds.

use crate::events::{
    BACK, DAY, Event, FORWARD, Feed, MINUTE, SECOND, Shape, chunks, random_events,
};
use crate::run::Run;
use anyhow::{Context, Result, ensure};
use essaim_proto::v1::{EpochProgress, SourceProgress};
use essaim_tests::cluster::shared;
use essaim_tests::postgres::Database;
use essaim_tests::unique;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

/// The result of one INSERT: count and sum by window and key.
type Groups = BTreeMap<(i64, Option<String>), (i64, i64)>;

/// An INSERT as the model knows it.
#[derive(Debug, Default)]
pub struct Modelled {
    pub size: i64,
    pub slide: i64,
    /// Whether windows take rows after they have closed: in output mode complete.
    pub keeps_all: bool,
    pub groups: Groups,
    /// Late rows by epoch.
    pub late: Vec<u64>,
}

impl Modelled {
    pub fn new(size: i64, slide: i64, keeps_all: bool) -> Self {
        Self {
            size,
            slide,
            keeps_all,
            ..Self::default()
        }
    }

    /// Takes a row in, given the watermark that the epoch before left. Whether it was late.
    fn add(&mut self, event: &Event, watermark: Option<i64>) -> bool {
        let Some(at) = event.at else { return false };
        let closed = |start: i64| watermark.is_some_and(|watermark| start + self.size <= watermark);
        let last = at.div_euclid(self.slide) * self.slide;
        if closed(last) {
            return true;
        }
        let mut start = last;
        while start + self.size > at {
            if self.keeps_all || !closed(start) {
                let group = self.groups.entry((start, event.k.clone())).or_default();
                group.0 += 1;
                group.1 += event.v.unwrap_or(0);
            }
            start -= self.slide;
        }
        false
    }

    /// The groups whose windows have closed.
    pub fn closed(&self, watermark: Option<i64>) -> Groups {
        let groups = self.groups.clone().into_iter();
        groups
            .filter(|((start, _), _)| watermark.is_some_and(|w| start + self.size <= w))
            .collect()
    }
}

/// Event time as the model knows it.
#[derive(Debug, Default)]
pub struct Times {
    latest: BTreeMap<String, i64>,
    pub watermark: Option<i64>,
}

impl Times {
    fn take(&mut self, partition: &str, at: i64) {
        let latest = self.latest.entry(partition.to_owned()).or_insert(at);
        *latest = at.max(*latest);
    }

    /// After an epoch; `idle` partitions do not count.
    fn advance(&mut self, source: &SourceProgress, delay: i64, idle: &BTreeSet<String>) {
        let active = source.end.keys().filter(|p| !idle.contains(*p));
        let times: Option<Vec<i64>> = active.map(|p| self.latest.get(p).copied()).collect();
        let least = match times {
            Some(times) if times.is_empty() => self.latest.values().max().copied(),
            times => times.and_then(|times| times.into_iter().min()),
        };
        self.watermark = self.watermark.max(least.map(|least| least - delay));
    }
}

/// Goes through the epochs of table `events` and compares watermarks and late rows. Partitions that `may_idle` after
/// they have been read to their ends are believed to be idle if the watermark says so.
pub fn replay(
    feed: &Feed,
    epochs: &[EpochProgress],
    delay: i64,
    may_idle: bool,
    inserts: &mut [Modelled],
) -> Result<Times> {
    let mut times = Times::default();
    for (number, epoch) in epochs.iter().enumerate() {
        ensure!(epoch.epoch == number as u64, "epoch {number} is missing");
        let source = epoch.sources.first().context("no source")?;
        let before = times.watermark;
        let mut late = vec![0; inserts.len()];
        let mut drained = BTreeSet::new();
        let mut never = BTreeSet::new();
        for (partition, sent) in feed.sent.iter().enumerate() {
            let name = format!("{}[{partition}]", feed.topic.name);
            let (start, end) = (source.start[&name], source.end[&name]);
            if source.latest[&name] == start {
                drained.insert(name.clone());
                if !times.latest.contains_key(&name) {
                    never.insert(name.clone());
                }
            }
            for event in &sent[start as usize..end as usize] {
                if let Some(at) = event.at {
                    times.take(&name, at);
                }
                for (insert, late) in inserts.iter_mut().zip(&mut late) {
                    *late += u64::from(insert.add(event, before));
                }
            }
        }
        times.advance(source, delay, &never);
        if may_idle && times.watermark != source.watermark_ms {
            // Which of those that have been read out are idle is a matter of wall-clock time.
            let names: Vec<&String> = drained.iter().collect();
            let found = (1..1_u32 << names.len()).find_map(|set| {
                let chosen = names
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| set & (1 << i) != 0);
                let idle = chosen.map(|(_, name)| (*name).clone()).collect();
                let mut guess = Times {
                    latest: times.latest.clone(),
                    watermark: before,
                };
                guess.advance(source, delay, &idle);
                (guess.watermark == source.watermark_ms).then_some(guess.watermark)
            });
            times.watermark = found.with_context(|| format!("the watermark of {epoch:?}"))?;
        }
        ensure!(
            times.watermark == source.watermark_ms,
            "the watermark should be {:?} after {epoch:?}",
            times.watermark
        );
        for (index, (insert, late)) in inserts.iter_mut().zip(late).enumerate() {
            let query = &epoch.queries[index];
            ensure!(
                query.late_rows == late && query.watermark_ms == times.watermark,
                "INSERT {index}: there should be {late} late rows, given the watermark {before:?}, in {epoch:?}"
            );
            insert.late.push(late);
        }
    }
    Ok(times)
}

/// The rows of a table as the model has them.
pub async fn groups(database: &Database, table: &str) -> Result<Groups> {
    let sql =
        format!("SELECT (extract(epoch FROM window_start) * 1000)::bigint, k, n, s FROM {table}");
    let mut groups = Groups::new();
    for row in database.rows(&sql).await? {
        let number = |column: usize| row[column].as_deref().unwrap_or("0").parse::<i64>();
        let k = row[1].clone().filter(|k| k != "none");
        let before = groups.insert((number(0)?, k), (number(2)?, number(3)?));
        ensure!(
            before.is_none(),
            "a group is there twice in {table}: {row:?}"
        );
    }
    Ok(groups)
}

pub fn same_groups(table: &str, got: &Groups, wanted: &Groups) -> Result<()> {
    let extra: Vec<_> = got
        .iter()
        .filter(|(k, v)| wanted.get(k) != Some(v))
        .take(5)
        .collect();
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(k, v)| got.get(k) != Some(v))
        .take(5)
        .collect();
    ensure!(
        extra.is_empty() && missing.is_empty(),
        "{table} has {extra:?}, and should have {missing:?}"
    );
    Ok(())
}

async fn case(seed: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let unit = [1, SECOND, 30 * MINUTE, DAY][seed as usize % 4];
    let size = unit * random.random_range(2..=30);
    let slide = if random.random_bool(0.4) {
        size
    } else {
        random.random_range((size / 6).max(1)..=size)
    };
    let other = unit * random.random_range(1..=30);
    let span = 15 * size;
    let delay = random.random_range(0..=span / 20);
    let change = if random.random_bool(0.5) {
        FORWARD
    } else {
        BACK
    };
    let shape = Shape {
        partitions: random.random_range(1..=3),
        rows: random.random_range(150..500),
        base: change - span / 2,
        span,
        disorder: delay + span / 4,
        delay,
        edge: slide,
    };
    let most = random.random_range(5..=shape.rows / 3);
    let may_idle = random.random_bool(0.3);
    let idle = if may_idle {
        ", idle_timeout '50 milliseconds'"
    } else {
        ""
    };
    eprintln!(
        "seed {seed}: {size}/{slide} and {other} {shape:?} max_offsets_per_trigger {most}{idle}"
    );

    let mut feed = Feed::create(shape.partitions as i32).await?;
    let database = Database::create().await?;
    let insert = |table: &str, mode: &str, k: &str, window: &str| {
        format!(
            "SET essaim.output_mode = '{mode}';
             INSERT INTO {table} SELECT window_start, {k} AS k, count(*) AS n, sum(v) AS s
             FROM events GROUP BY window(at, {window}), k;\n"
        )
    };
    let sliding = format!("'{size} milliseconds', '{slide} milliseconds'");
    let tumbling = format!("'{other} milliseconds'");
    let options = format!(", max_offsets_per_trigger '{most}'{idle}");
    let sql = [
        feed.declare(delay, &options),
        database.declare(
            "updated",
            "updated",
            ", mode 'upsert', key 'window_start,k'",
        ),
        database.declare("appended", "appended", ""),
        database.declare("other", "other", ""),
        database.declare("complete", "complete", ", mode 'overwrite'"),
        insert("updated", "update", "coalesce(k, 'none')", &sliding),
        insert("appended", "append", "k", &sliding),
        insert("other", "append", "k", &tumbling),
        insert("complete", "complete", "k", &sliding),
    ]
    .concat();
    let client = shared().await?.client().await?;
    let run = Run::start_on(client, &sql, &unique("late")).await?;
    for piece in chunks(random_events(&shape, seed), &shape, &mut random) {
        feed.send(piece).await?;
        if random.random_bool(0.5) {
            run.drained(&feed).await?;
        }
    }
    run.drained(&feed).await?;
    run.stop().await?;
    let mut inserts = [
        Modelled::new(size, slide, false),
        Modelled::new(size, slide, false),
        Modelled::new(other, other, false),
        Modelled::new(size, slide, true),
    ];
    let epochs = run.epochs().await?;
    let times = replay(&feed, &epochs, delay, may_idle, &mut inserts)?;
    let [updated, appended, tumbled, complete] = &inserts;
    let of = async |table| groups(&database, table).await;
    same_groups("updated", &of("updated").await?, &updated.groups)?;
    same_groups(
        "appended",
        &of("appended").await?,
        &appended.closed(times.watermark),
    )?;
    same_groups(
        "other",
        &of("other").await?,
        &tumbled.closed(times.watermark),
    )?;
    same_groups("complete", &of("complete").await?, &complete.groups)?;
    let late: u64 = inserts.iter().flat_map(|insert| &insert.late).sum();
    let totals = run.client.get(&run.id).await?.totals.unwrap_or_default();
    ensure!(totals.late_rows == late, "{totals:?}, but {late} late rows");
    eprintln!("seed {seed}: {} epochs, {late} late rows", epochs.len());
    Ok(())
}

/// Cases of the seeds `from`, `from + 2`, …: `ESSAIM_ORACLE_SEEDS` of them.
async fn cases(from: u64) -> Result<()> {
    let count = std::env::var("ESSAIM_ORACLE_SEEDS").ok();
    let count: u64 = count.map_or(Ok(5), |count| count.parse())?;
    for round in 0..count {
        let seed = from + 2 * round;
        case(seed)
            .await
            .map_err(|e| e.context(format!("seed {seed}")))?;
    }
    Ok(())
}

#[tokio::test]
async fn late_rows_are_counted_and_left_out_as_the_model_says_1() -> Result<()> {
    cases(1).await
}

#[tokio::test]
async fn late_rows_are_counted_and_left_out_as_the_model_says_2() -> Result<()> {
    cases(2).await
}
