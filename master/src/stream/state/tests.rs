//! A state against a map that does the same.

use super::{Delta, KeyedState, Restore, Stored};
use arrow::array::{
    ArrayRef, AsArray, BinaryArray, DictionaryArray, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Random enough, and the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Key `(name, part)`, value `(count, label)`.
fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("part", DataType::Int64, true),
        Field::new("count", DataType::Int64, true),
        Field::new("label", DataType::Utf8, true),
    ]))
}

type Key = i64;
type Model = BTreeMap<Key, (i64, i64)>;

fn keys(of: &[Key]) -> Vec<ArrayRef> {
    let names = of
        .iter()
        .map(|key| (key % 7 != 0).then(|| format!("name {}", key / 3)));
    let parts = of.iter().copied();
    vec![
        Arc::new(names.collect::<StringArray>()),
        Arc::new(Int64Array::from_iter_values(parts)),
    ]
}

fn delta(upserts: &[(Key, i64, i64)], deletes: &[Key], expire_before: Option<i64>) -> Delta {
    let mut delta = Delta::new(&schema(), 2).unwrap();
    let of: Vec<_> = upserts.iter().map(|row| row.0).collect();
    let mut columns = keys(&of);
    let counts = Int64Array::from_iter_values(upserts.iter().map(|row| row.1));
    let labels = upserts.iter().map(|row| Some(format!("value {}", row.1)));
    columns.push(Arc::new(counts));
    columns.push(Arc::new(labels.collect::<StringArray>()));
    delta.upserts = RecordBatch::try_new(schema(), columns).unwrap();
    delta.expires_ms = Int64Array::from_iter_values(upserts.iter().map(|row| row.2));
    delta.deletes = RecordBatch::try_new(delta.deletes.schema(), keys(deletes)).unwrap();
    delta.expire_before = expire_before;
    delta
}

fn rows(stored: &Stored) -> Vec<(Key, (i64, i64))> {
    let part = stored.rows.column(1).as_primitive::<Int64Type>();
    let count = stored.rows.column(2).as_primitive::<Int64Type>();
    let label = stored.rows.column(3).as_string::<i32>();
    (0..stored.rows.num_rows())
        .map(|i| {
            assert_eq!(label.value(i), format!("value {}", count.value(i)));
            (part.value(i), (count.value(i), stored.expires_ms.value(i)))
        })
        .collect()
}

fn all(state: &KeyedState) -> Model {
    let batches = state.snapshot().batches().map(Result::unwrap);
    batches
        .flat_map(|stored| {
            assert!(stored.rows.num_rows() <= 8192);
            rows(&stored)
        })
        .collect()
}

fn restored(chunks: impl Iterator<Item = Bytes>) -> KeyedState {
    let mut restore = Restore::default();
    for chunk in chunks {
        restore.push(chunk).unwrap();
    }
    restore.finish().unwrap()
}

#[test]
fn a_state_does_what_a_map_does() {
    for seed in 1..40 {
        let mut random = Random(seed * 0x9E37_79B9);
        let range = 1 + random.below(3000);
        let mut state = KeyedState::new(schema(), 2).unwrap();
        let mut model = Model::new();
        let mut kept = Vec::new();
        for step in 0..30 {
            let expiry = |random: &mut Random| match random.below(3) {
                0 => i64::MAX,
                _ => random.below(50) as i64 + step,
            };
            let upserts: BTreeMap<Key, (i64, i64)> = (0..random.below(range))
                .map(|_| {
                    let key = random.below(range) as i64;
                    (key, (random.below(1000) as i64, expiry(&mut random)))
                })
                .collect();
            let upserts: Vec<_> = upserts.iter().map(|(k, (v, e))| (*k, *v, *e)).collect();
            let deletes: Vec<_> = (0..random.below(range) / 2)
                .map(|_| random.below(range) as i64)
                .collect();
            let expire_before = (random.below(2) == 0).then(|| random.below(20) as i64 + step);

            let delta = delta(&upserts, &deletes, expire_before);
            let delta = Delta::decode(delta.encode().unwrap()).unwrap();
            state.apply(&delta).unwrap();
            model.retain(|_, (_, expires)| expire_before.is_none_or(|until| *expires > until));
            model.retain(|key, _| !deletes.contains(key));
            model.extend(upserts.iter().map(|(k, v, e)| (*k, (*v, *e))));

            assert_eq!(state.rows(), model.len(), "seed {seed} step {step}");
            assert_eq!(all(&state), model, "seed {seed} step {step}");
            let asked: Vec<_> = (0..50).map(|_| random.below(2 * range) as i64).collect();
            let after = random.below(40) as i64;
            let found = rows(&state.get(&keys(&asked), 50, after).unwrap());
            let alive = |key: &Key| model.get(key).filter(|(_, expires)| *expires > after);
            let mut expected: Vec<_> = Vec::new();
            for key in &asked {
                if let Some(value) = alive(key)
                    && !expected.contains(&(*key, *value))
                {
                    expected.push((*key, *value));
                }
            }
            assert_eq!(found, expected);
            let missing = state.missing(&keys(&asked), 50, after).unwrap();
            let first =
                |i: &usize| !asked[..*i].contains(&asked[*i]) && alive(&asked[*i]).is_none();
            let expected: Vec<_> = (0..50).filter(first).map(|i| i as u32).collect();
            assert_eq!(missing.values().to_vec(), expected);
            let until = random.below(60) as i64 + step;
            let expired: Vec<_> = state.expired(until, &keys(&asked), 50).unwrap();
            let expired: Vec<_> = expired.iter().flat_map(rows).collect();
            assert!(expired.is_sorted_by_key(|(_, (_, expires))| *expires));
            let expired: Model = expired.into_iter().collect();
            let mut expected = model.clone();
            expected.retain(|key, (_, expires)| *expires <= until && !asked.contains(key));
            assert_eq!(expired, expected);

            if random.below(4) == 0 {
                kept.push((state.snapshot(), model.clone()));
            }
            if random.below(8) == 0 {
                state = restored(state.snapshot().encode().unwrap().map(Result::unwrap));
            }
        }
        for (snapshot, model) in kept {
            let state = restored(snapshot.encode().unwrap().map(Result::unwrap));
            assert_eq!(all(&state), model, "a snapshot changed");
        }
        let everything = delta(&[], &model.keys().copied().collect::<Vec<_>>(), None);
        let empty = KeyedState::new(schema(), 2).unwrap().bytes();
        state.apply(&everything).unwrap();
        assert_eq!((state.rows(), state.bytes()), (0, empty));
    }
}

#[test]
fn a_delta_of_other_columns_is_refused() {
    let mut state = KeyedState::new(schema(), 2).unwrap();
    let other = Delta::new(&schema(), 1).unwrap();
    let error = state.apply(&other).unwrap_err();
    assert!(
        error.to_string().contains("state of other columns"),
        "{error}"
    );
    let error = Delta::decode(Bytes::from_static(b"123")).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[test]
fn a_snapshot_that_is_cut_off_is_not_restored() {
    let mut state = KeyedState::new(schema(), 2).unwrap();
    let upserts: Vec<_> = (0..20_000).map(|key| (key, key, i64::MAX)).collect();
    state.apply(&delta(&upserts, &[], None)).unwrap();
    let chunks = state.snapshot().encode().unwrap().map(Result::unwrap);
    let bytes = Bytes::from(chunks.collect::<Vec<_>>().concat());
    let mut restore = Restore::default();
    restore.push(bytes.slice(..bytes.len() / 2)).unwrap();
    let error = restore.finish().unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[test]
fn a_key_of_no_columns_is_one_group() {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    let mut state = KeyedState::new(Arc::clone(&schema), 0).unwrap();
    assert_eq!(state.get(&[], 3, i64::MIN).unwrap().rows.num_rows(), 0);
    let mut delta = Delta::new(&schema, 0).unwrap();
    delta.upserts =
        RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![7]))]).unwrap();
    delta.expires_ms = Int64Array::from(vec![i64::MAX]);
    let delta = Delta::decode(delta.encode().unwrap()).unwrap();
    state.apply(&delta).unwrap();
    state.apply(&delta).unwrap();
    assert_eq!(state.rows(), 1);
    let found = state.get(&[], 3, i64::MIN).unwrap().rows;
    assert_eq!(found.column(0).as_primitive::<Int64Type>().values(), &[7]);
}

#[test]
fn values_of_nested_types_come_back_as_they_were() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([
        Some(vec![Some(1), None]),
        None,
        Some(vec![]),
    ]);
    let fields = vec![
        Field::new("x", DataType::Int32, true),
        Field::new("y", DataType::Utf8, true),
    ];
    let pair = StructArray::new(
        fields.into(),
        vec![
            Arc::new(Int32Array::from(vec![Some(1), None, Some(3)])),
            Arc::new(StringArray::from(vec![None, Some("b"), Some("")])),
        ],
        Some(vec![true, true, false].into()),
    );
    let label: DictionaryArray<Int32Type> = [Some("a"), None, Some("a")].into_iter().collect();
    let bytes = BinaryArray::from_opt_vec(vec![Some(b"\0\xff"), None, Some(b"")]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("key", Arc::new(label.clone())),
        ("list", Arc::new(list)),
        ("pair", Arc::new(pair)),
        ("label", Arc::new(label)),
        ("bytes", Arc::new(bytes)),
        ("number", Arc::new(Int64Array::from(vec![1, 2, 3]))),
    ];
    let rows =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true)));
    let rows = rows.unwrap();
    let keys = [Arc::clone(rows.column(0)), Arc::clone(rows.column(5))];
    let order = [0, 5, 1, 2, 3, 4];
    let rows = rows.project(&order).unwrap();
    let mut state = KeyedState::new(rows.schema(), 2).unwrap();
    let mut delta = Delta::new(&rows.schema(), 2).unwrap();
    delta.upserts = rows.clone();
    delta.expires_ms = Int64Array::from(vec![1, 2, 3]);
    let delta = Delta::decode(delta.encode().unwrap()).unwrap();
    state.apply(&delta).unwrap();
    assert_eq!(state.get(&keys, 3, i64::MIN).unwrap().rows, rows);
    let state = restored(state.snapshot().encode().unwrap().map(Result::unwrap));
    assert_eq!(state.get(&keys, 3, i64::MIN).unwrap().rows, rows);
}

/// `cargo test … --lib -- --ignored --nocapture the_cost` prints figures.
#[test]
#[ignore = "measures"]
fn the_cost_of_an_epoch_is_that_of_the_groups_it_touches() {
    let many = 2_000_000;
    let chunk = |from: i64, to: i64, value: i64| {
        let rows: Vec<_> = (from..to)
            .map(|key| (key, value, key % 1000 + 10))
            .collect();
        delta(&rows, &[], None)
    };
    let epoch = |state: &mut KeyedState, step: i64| {
        let range = state.rows() as u64;
        let mut random = Random(step as u64 + 1);
        let mut touched: Vec<_> = (0..1000)
            .map(|i| match range {
                1000 => i,
                _ => random.below(range) as i64,
            })
            .collect();
        touched.sort_unstable();
        touched.dedup();
        let of: Vec<_> = touched
            .iter()
            .map(|key| (*key, step, key % 1000 + 10))
            .collect();
        let keys = keys(&touched);
        let delta = delta(&of, &[], Some(0));
        let started = Instant::now();
        let old = state.get(&keys, touched.len(), i64::MIN).unwrap();
        assert_eq!(old.rows.num_rows(), touched.len());
        assert!(state.expired(0, &keys, touched.len()).unwrap().is_empty());
        state.apply(&delta).unwrap();
        started.elapsed().as_secs_f64() * 1e3
    };
    let median = |state: &mut KeyedState| {
        let mut times: Vec<_> = (0..51).map(|step| epoch(state, step)).collect();
        times.sort_by(f64::total_cmp);
        times[25]
    };
    let mut small = KeyedState::new(schema(), 2).unwrap();
    small.apply(&chunk(0, 1000, 0)).unwrap();
    let mut large = KeyedState::new(schema(), 2).unwrap();
    let started = Instant::now();
    for from in (0..many).step_by(100_000) {
        large.apply(&chunk(from, from + 100_000, 0)).unwrap();
    }
    println!(
        "filling {many}: {:?}, {} MiB",
        started.elapsed(),
        large.bytes() >> 20
    );
    println!("1,000 of 1,000: {:.3} ms", median(&mut small));
    println!("1,000 of {many}: {:.3} ms", median(&mut large));
    let started = Instant::now();
    let snapshot = large.snapshot();
    println!("snapshot: {:?}", started.elapsed());
    println!("the first epoch after: {:.3} ms", epoch(&mut large, 99));
    let started = Instant::now();
    let chunks: Vec<_> = snapshot.encode().unwrap().map(Result::unwrap).collect();
    let size: usize = chunks.iter().map(Bytes::len).sum();
    println!("encoding: {:?}, {} MiB", started.elapsed(), size >> 20);
    let started = Instant::now();
    let back = restored(chunks.into_iter());
    println!("restoring {}: {:?}", back.rows(), started.elapsed());
    assert_eq!(back.rows(), large.rows());
}
