//! `essaim check`: right jobs have no findings, wrong ones all of theirs, each with its line and what to do.

use anyhow::{Context, Result, ensure};
use essaim_tests::cluster::shared;
use essaim_tests::command::{Ended, essaim};
use essaim_tests::kafka::{Topic, brokers};
use essaim_tests::postgres::Database;
use essaim_tests::unique;
use futures::StreamExt;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};
use url::Url;

/// Checks of one test that run at a time.
const AT_A_TIME: usize = 4;

/// Checks a job as a script would.
async fn check(sql: &str, more: &[&str]) -> Result<(Ended, Value)> {
    let cluster = shared().await?;
    let file = cluster.dir().join(unique("job")).with_extension("sql");
    std::fs::write(&file, sql)?;
    let file = file.to_string_lossy();
    let mut arguments = vec!["check", "--json", file.as_ref()];
    arguments.extend(more);
    let ended = essaim(&cluster.url(), &arguments).await?;
    let found = ended.json()?;
    Ok((ended, found))
}

/// The findings of an answer: severity, line, and what it says with what to do.
fn findings(found: &Value) -> Vec<(String, u64, String)> {
    let all = found["findings"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.map(|finding| {
        (
            text(&finding["severity"]),
            finding["line"].as_u64().unwrap_or(u64::MAX),
            format!("{} {}", text(&finding["what"]), text(&finding["advice"])),
        )
    })
    .collect()
}

/// Sets a topic's settings.
async fn alter(topic: &Topic, name: &str, value: &str) -> Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers());
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let change = AlterConfig::new(ResourceSpecifier::Topic(&topic.name)).set(name, value);
    for altered in admin.alter_configs([&change], &AdminOptions::new()).await? {
        altered.map_err(|(_, code)| anyhow::anyhow!("{code}"))?;
    }
    Ok(())
}

/// Tables and topics of one test, and their declarations, one a line.
struct Fixture {
    database: Database,
    topic: Topic,
    /// Holds what is no JSON.
    broken: Topic,
    compacted: Topic,
    declarations: String,
}

/// Lines of [`Fixture::declarations`]: what comes after begins on the next.
const DECLARED: u64 = 8;
const EVENTS: usize = 600;
const NAMES: u64 = 1_000;

impl Fixture {
    async fn create() -> Result<Self> {
        let database = Database::create().await?;
        database
            .execute(
                "CREATE TABLE names (k text PRIMARY KEY, v bigint); \
                 INSERT INTO names SELECT 'k' || i, i FROM generate_series(1, 1000) i; ANALYZE names; \
                 CREATE TABLE rows (k text, v bigint); \
                 CREATE TABLE keyed (k text PRIMARY KEY, n bigint); \
                 CREATE TABLE loose (k text, n bigint); CREATE INDEX ON loose (k); \
                 CREATE TABLE strict (k text NOT NULL, w bigint NOT NULL, d bigint NOT NULL DEFAULT 1); \
                 CREATE TABLE per_minute (window_start timestamp, k text, n bigint, PRIMARY KEY (window_start, k))",
            )
            .await?;
        let topic = Topic::create(3).await?;
        let events = (0..EVENTS).map(|id| {
            json!({"id": id, "k": format!("k{}", id % 7), "v": id, "at": 1_700_000_000_000_u64 + id as u64})
                .to_string()
        });
        topic.produce(events).await?;
        let broken = Topic::create(1).await?;
        broken.produce(["no JSON".to_owned()].into_iter()).await?;
        let compacted = Topic::create(1).await?;
        alter(&compacted, "cleanup.policy", "compact").await?;
        let declarations = [
            stream("events", &topic, "event_time 'at', on_error 'skip'"),
            database.declare("names", "names", ""),
            database.declare("rows", "rows", ""),
            database.declare("keyed", "keyed", ", mode 'upsert', key 'k'"),
            database.declare("loose", "loose", ", mode 'upsert', key 'k'"),
            database.declare("strict", "strict", ""),
            database.declare(
                "per_minute",
                "per_minute",
                ", mode 'upsert', key 'window_start,k'",
            ),
            stream("untimed", &topic, "on_error 'skip'"),
        ]
        .concat();
        ensure!(
            declarations.lines().count() as u64 == DECLARED,
            "{declarations}"
        );
        Ok(Self {
            database,
            topic,
            broken,
            compacted,
            declarations,
        })
    }
}

fn stream(name: &str, topic: &Topic, options: &str) -> String {
    format!(
        "CREATE UNBOUNDED EXTERNAL TABLE {name} (id BIGINT, k VARCHAR NOT NULL, v BIGINT, at TIMESTAMP NOT NULL) \
         STORED AS KAFKA LOCATION '{}' OPTIONS (format 'json', {options});\n",
        topic.location()
    )
}

#[tokio::test]
async fn right_jobs_have_no_findings_and_estimates_near_the_truth() -> Result<()> {
    let fixture = Fixture::create().await?;
    let batch = format!(
        "{}INSERT INTO keyed SELECT k, sum(v) FROM names GROUP BY k;",
        fixture.declarations
    );
    let (ended, found) = check(&batch, &["--strict"]).await?;
    assert_eq!(found["findings"], json!([]), "{found:#}");
    assert_eq!((ended.code, &found["errors"]), (0, &json!(0)));
    let estimate = &found["estimates"][0];
    assert_eq!(
        (&estimate["table"], &estimate["line"]),
        (&json!("names"), &json!(9))
    );
    assert_eq!(estimate["unbounded"], json!(false));
    let rows = estimate["rows"].as_u64().context("rows")?;
    ensure!(
        (NAMES * 9 / 10..=NAMES * 11 / 10).contains(&rows),
        "{found:#}"
    );
    ensure!(
        estimate["splits"]
            .as_u64()
            .is_some_and(|splits| splits >= 1)
    );

    let streaming = format!(
        "{}INSERT INTO per_minute SELECT window_start, k, count(*) AS n FROM events GROUP BY window(at, '1 minute'), k;",
        fixture.declarations
    );
    let (ended, found) = check(&streaming, &["--strict"]).await?;
    assert_eq!(found["findings"], json!([]), "{found:#}");
    assert_eq!(ended.code, 0);
    let estimate = &found["estimates"][0];
    assert_eq!(estimate["rows"], json!(EVENTS), "{found:#}");
    assert_eq!(estimate["splits"], json!(3));
    assert_eq!(estimate["unbounded"], json!(true));

    let tables = fixture
        .database
        .value("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        .await?;
    assert_eq!(tables, "6", "a check creates nothing");
    assert_eq!(
        fixture.database.value("SELECT count(*) FROM keyed").await?,
        "0"
    );
    Ok(())
}

/// A wrong end of a job, the line of its finding counted from the declarations on (0 for the job as a whole), and a part
/// of the finding.
type Wrong = (String, u64, &'static str);

fn wrong_jobs(fixture: &Fixture) -> Vec<Wrong> {
    let postgres = |url: &str| {
        format!(
            "CREATE EXTERNAL TABLE t STORED AS POSTGRES LOCATION '{url}' OPTIONS (table 'names');"
        )
    };
    let topic = |name: &str, options: &str| {
        format!(
            "CREATE EXTERNAL TABLE t (id BIGINT) STORED AS KAFKA LOCATION 'kafka://{}/{name}' OPTIONS (format 'json'{options});\n",
            brokers()
        )
    };
    let other_database = fixture
        .database
        .url
        .replace(&fixture.database.name, "essaim_nowhere");
    let sunk = |select: &str| {
        format!(
            "CREATE EXTERNAL TABLE sunk STORED AS KAFKA LOCATION '{}' OPTIONS (format 'json');\nINSERT INTO sunk {select};",
            fixture.compacted.location()
        )
    };
    let jobs: Vec<(String, u64, &'static str)> = vec![
        ("INSERT INTO rows SELECT k, v FORM names;".into(), 1, "found: names"),
        ("\n\n  INSERT INTO rows\nSELECT k v FROM names GROUP;".into(), 4, "end of statement"),
        ("INSERT INTO rows SELECT 'x, v FROM names;".into(), 1, "Unterminated string"),
        ("INSERT INTO rows SELECT k, v FROM nowhere;".into(), 1, "nowhere"),
        ("INSERT INTO nowhere SELECT k, v FROM names;".into(), 1, "nowhere"),
        ("INSERT INTO rows SELECT k, w FROM names;".into(), 1, "No field named w"),
        ("INSERT INTO rows (k, v) SELECT k FROM names;".into(), 1, "names 2 columns (k, v), and the SELECT yields 1 (k)"),
        ("INSERT INTO rows SELECT v, k FROM names;".into(), 1, "column 1 of the SELECT is named v and goes into k"),
        ("DELETE FROM rows;".into(), 1, "DELETE is not there"),
        (fixture.database.declare("t", "namse", "") + "INSERT INTO rows SELECT k, v FROM t;", 2, "has no table namse: did you mean names?"),
        ("INSERT INTO rows SELECT k, make_array(v) FROM names;".into(), 1, "List(Int64) to Int64"),
        ("INSERT INTO rows SELECT k, nosuch(v) FROM names;".into(), 1, "nosuch"),
        ("CREATE EXTERNAL TABLE t STORED AS MYSQL LOCATION 'x';".into(), 1, "known are"),
        (topic(&fixture.topic.name, ", startin_offsets 'latest'"), 1, "did you mean starting_offsets"),
        (topic("essaim-nowhere", "") + "INSERT INTO rows SELECT 'a', id FROM t;", 2, "essaim-nowhere"),
        ("SET essaim.nosuch = 1;".into(), 1, "nosuch"),
        ("SET essaim.trigger = 'sometimes';\nINSERT INTO rows SELECT k, v FROM events;".into(), 2, "write an interval"),
        ("SET essaim.output_mode = 'sometimes';\nINSERT INTO rows SELECT k, v FROM events;".into(), 2, "write 'auto'"),
        ("INSERT INTO loose SELECT k, count(*) AS n FROM names GROUP BY k;".into(), 1, "CREATE UNIQUE INDEX ON"),
        ("SELECT k FROM names;".into(), 1, "only yields rows"),
        ("SET essaim.speculation = false;".into(), 0, "no INSERT"),
        ("INSERT INTO rows SELECT k, v FROM events;\nINSERT INTO keyed SELECT k, v AS n FROM names;".into(), 0, "some INSERTs"),
        ("SET essaim.output_mode = 'append';\nINSERT INTO keyed SELECT k, count(*) AS n FROM events GROUP BY k;".into(), 2, "when they are final"),
        ("INSERT INTO rows SELECT k, v FROM events LIMIT 3;".into(), 1, "LIMIT over a stream"),
        (postgres("postgres://u:${ESSAIM_NO_SUCH}@127.0.0.1/d"), 1, "${ESSAIM_NO_SUCH}"),
        (postgres(&other_database), 1, "does not exist"),
        (postgres("postgres://u:hunter2@127.0.0.1:1/d"), 1, "is out of reach"),
        ("INSERT INTO strict (k) SELECT k FROM names;".into(), 1, "is NOT NULL, and the INSERT makes it NULL"),
        ("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/proc/version/out/';\nINSERT INTO t SELECT k FROM names;".into(), 1, "Not a directory"),
        (sunk("SELECT k, v FROM names"), 2, "is compacted"),
        ("SET essaim.output_mode = 'complete';\n".to_owned() + &sunk("SELECT k, count(*) AS n FROM events GROUP BY k"), 3, "what is in a topic stays"),
        (topic(&fixture.broken.name, "") + "INSERT INTO rows SELECT 'a', id FROM t;", 1, "does not decode"),
        (topic(&fixture.topic.name, ", event_time 'At'").replace("(id BIGINT)", "(id BIGINT, at TIMESTAMP)"), 1, "there are id, at, _key, _topic"),
        ("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/tmp/nowhere/' OPTIONS (compression 'snappy');".into(), 1, "table t: option compression 'snappy': for PARQUET write 'parquet.compression'"),
        ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/tmp/nowhere/' OPTIONS (compression 'snappy');".into(), 1, "table t: option compression 'snappy': write 'gzip'"),
        (postgres("jdbc:postgresql://u:hunter2@h/d"), 1, "is 'postgres://HOST:PORT/DATABASE', without jdbc: in front, with USER:PASSWORD@ before HOST"),
    ];
    jobs
}

#[tokio::test]
async fn each_wrong_job_has_its_finding_at_its_line_and_ends_with_1() -> Result<()> {
    let fixture = Fixture::create().await?;
    let jobs = wrong_jobs(&fixture);
    ensure!(jobs.len() >= 20);
    let checked = jobs.iter().map(|(end, line, part)| {
        let sql = format!("{}{end}", fixture.declarations);
        async move {
            let (ended, found) = check(&sql, &[]).await?;
            let line = if *line == 0 { 0 } else { DECLARED + line };
            let is_found = findings(&found).iter().any(|(severity, at, what)| {
                severity == "error" && *at == line && what.contains(part)
            });
            anyhow::Ok(
                match is_found && ended.code == 1 && !ended.out.contains("hunter2") {
                    true => None,
                    false => Some(format!(
                        "{end}\n  -> {}, not {part:?} at {line}: {found:#}",
                        ended.code
                    )),
                },
            )
        }
    });
    let checked: Vec<_> = futures::stream::iter(checked)
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    let missed = checked.into_iter().collect::<Result<Vec<_>>>()?;
    let missed: Vec<String> = missed.into_iter().flatten().collect();
    ensure!(missed.is_empty(), "{}", missed.join("\n"));
    Ok(())
}

#[tokio::test]
async fn one_error_does_not_hide_the_others() -> Result<()> {
    let fixture = Fixture::create().await?;
    let sql = format!(
        "{}SELEC 1;\n\
         CREATE EXTERNAL TABLE t STORED AS MYSQL LOCATION 'x';\n\
         CREATE VIEW over_t AS SELECT * FROM t;\n\
         INSERT INTO rows SELECT a, b FROM over_t;\n\
         INSERT INTO rows SELECT k, w FROM names;\n  \
         INSERT INTO nowhere SELECT k FROM names;\n",
        fixture.declarations
    );
    let (ended, found) = check(&sql, &[]).await?;
    let found = findings(&found);
    let at = |severity: &str| {
        let of = found.iter().filter(|(is, ..)| is == severity);
        of.map(|(_, line, _)| line - DECLARED).collect::<Vec<_>>()
    };
    assert_eq!(at("error"), [1, 2, 5, 6], "{found:#?}");
    assert_eq!(
        at("note"),
        [3, 4],
        "what follows from an error is no error of its own: {found:#?}"
    );
    assert_eq!(ended.code, 1);
    assert_eq!(ended.err, "error: the job has 4 errors and no warnings\n");
    Ok(())
}

#[tokio::test]
async fn what_may_go_wrong_later_is_a_warning_that_only_strict_fails() -> Result<()> {
    let fixture = Fixture::create().await?;
    let brief = Topic::create(1).await?;
    alter(&brief, "retention.ms", "120000").await?;
    let after = DECLARED + 1;
    for (sql, line, part) in [
        (
            "INSERT INTO keyed SELECT k, count(*) AS n FROM untimed GROUP BY k;".to_owned(),
            after,
            "the state grows",
        ),
        (
            "INSERT INTO keyed SELECT k, v AS n FROM events;".to_owned(),
            after,
            "comes twice in an epoch",
        ),
        (
            "INSERT INTO keyed SELECT k, count(*) AS n FROM events GROUP BY k, v;".to_owned(),
            after,
            "grouped by more than the key",
        ),
        (
            "INSERT INTO keyed SELECT k, count(*) AS n FROM untimed GROUP BY window(at, INTERVAL '1 minute'), k;".to_owned(),
            after,
            "groups of count(*) by window(untimed.at, '1 minute'), k, so",
        ),
        (
            "INSERT INTO keyed SELECT DISTINCT ON (k) k, v AS n FROM untimed;".to_owned(),
            after,
            "groups of DISTINCT ON (k), so",
        ),
        (
            stream("bounded", &fixture.topic, "event_time 'at', watermark_delay '1 minute', on_error 'skip'")
                .replace("UNBOUNDED ", "")
                + "INSERT INTO rows SELECT k, v FROM bounded;",
            after,
            "is not UNBOUNDED, so it is read once, up to its end, without event_time, watermark_delay",
        ),
        (
            "SET essaim.trigger = '1 second';\nINSERT INTO rows SELECT k, v FROM names;".to_owned(),
            after,
            "essaim.trigger does nothing",
        ),
        (
            stream("brief", &brief, "on_error 'skip'") + "INSERT INTO rows SELECT k, v FROM brief;",
            after,
            "keeps records for 2 min only",
        ),
        (
            stream("strict_json", &fixture.topic, "on_error 'fail'")
                + "INSERT INTO rows SELECT k, v FROM strict_json;",
            after,
            "ends the job",
        ),
        (
            stream(
                "lettered",
                &fixture.topic,
                "on_error 'dead_letter', dead_letter_topic 'essaim-nowhere'",
            ) + "INSERT INTO rows SELECT k, v FROM lettered;",
            after,
            "there is no topic essaim-nowhere",
        ),
    ] {
        let sql = format!("{}{sql}", fixture.declarations);
        let (ended, found) = check(&sql, &[]).await?;
        let is_found = findings(&found).iter().any(|(severity, at, what)| {
            severity == "warning" && *at == line && what.contains(part)
        });
        ensure!(is_found && ended.code == 0, "{part}: {found:#}");
        let (ended, _) = check(&sql, &["--strict"]).await?;
        assert_eq!(ended.code, 1, "{part}");
    }
    Ok(())
}

#[tokio::test]
async fn a_misspelt_column_is_noted() -> Result<()> {
    let fixture = Fixture::create().await?;
    let sql = format!(
        "CREATE EXTERNAL TABLE t (id BIGINT, K VARCHAR, \"V\" BIGINT) STORED AS KAFKA LOCATION '{}' OPTIONS (format 'json');\n{}\
         INSERT INTO rows SELECT k, \"V\" AS v FROM t;",
        fixture.topic.location(),
        fixture.database.declare("rows", "rows", "")
    );
    let (ended, found) = check(&sql, &["--strict"]).await?;
    let found = findings(&found);
    let noted = found.iter().any(|(severity, line, what)| {
        severity == "note" && *line == 1 && what.contains("newest records has a value for V")
    });
    ensure!(noted && ended.code == 0, "{found:#?}");
    Ok(())
}

/// Each with its severity, its line, and what it says.
type Findings = Vec<(String, u64, String)>;

#[tokio::test]
async fn a_bad_record_does_not_hide_a_misspelt_column() -> Result<()> {
    let fixture = Fixture::create().await?;
    let orders = Topic::create(1).await?;
    let records = (0..9).map(|id| match id {
        4 => "\"bob\"".to_owned(),
        _ => json!({"orderId": id, "n": 1}).to_string(),
    });
    orders.produce(records).await?;
    let check = async |on_error: &str| -> Result<(Ended, Findings)> {
        let sql = format!(
            "CREATE EXTERNAL TABLE t (orderId BIGINT, n BIGINT) STORED AS KAFKA LOCATION '{}' OPTIONS (format 'json', on_error '{on_error}');\n{}\
             INSERT INTO rows SELECT 'a' AS k, orderid AS v FROM t;",
            orders.location(),
            fixture.database.declare("rows", "rows", "")
        );
        let (ended, found) = check(&sql, &[]).await?;
        assert_eq!(found["kind"], json!("batch"), "{found:#}");
        Ok((ended, findings(&found)))
    };
    for (on_error, severity, advises) in [("skip", "warning", false), ("fail", "error", true)] {
        let (_, found) = check(on_error).await?;
        let has = |wanted: &str, part: &str| {
            found.iter().any(|(severity, line, what)| {
                severity == wanted && *line == 1 && what.contains(part)
            })
        };
        let bad =
            "offset 4: the record does not decode: the message is \"bob\", and no JSON object";
        ensure!(has(severity, bad), "{found:#?}");
        ensure!(
            has(
                "note",
                "none of the 8 newest records has a value for orderid"
            ),
            "{found:#?}"
        );
        assert_eq!(has(severity, "or set on_error"), advises, "{found:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_login_without_permissions_is_told_which_to_grant() -> Result<()> {
    let fixture = Fixture::create().await?;
    let role = unique("essaim_role");
    let database = &fixture.database;
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'hunter2'; REVOKE CREATE ON SCHEMA public FROM PUBLIC; \
             GRANT SELECT ON keyed TO {role}; CREATE VIEW seen AS SELECT * FROM names"
        ))
        .await?;
    let mut url = Url::parse(&database.url)?;
    url.set_username(&role).ok().context("the user")?;
    url.set_password(Some("hunter2"))
        .ok()
        .context("the password")?;
    let declare = |table: &str, options: &str| {
        format!(
            "CREATE EXTERNAL TABLE {table} STORED AS POSTGRES LOCATION '{url}' OPTIONS (table '{table}'{options});\n"
        )
    };
    let sql = [
        declare("names", ""),
        declare("seen", ""),
        declare("keyed", ", mode 'upsert', key 'k'"),
        declare("made", ""),
        "INSERT INTO keyed SELECT k, sum(v) AS n FROM seen GROUP BY k;\n".to_owned(),
        "INSERT INTO made SELECT 1 AS one;\n".to_owned(),
        "INSERT INTO made SELECT v AS one FROM names;\n".to_owned(),
    ]
    .concat();
    let checked = check(&sql, &[]).await;
    database
        .execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await?;
    let (ended, found) = checked?;
    assert_eq!(ended.code, 1);
    ensure!(!ended.out.contains("hunter2"), "{found:#}");
    let found = findings(&found);
    for (line, part) in [
        (1, format!("GRANT SELECT ON \"public\".\"names\" TO {role}")),
        (2, format!("GRANT SELECT ON \"public\".\"seen\" TO {role}")),
        (
            5,
            format!("GRANT INSERT, UPDATE ON \"public\".\"keyed\" TO {role}"),
        ),
        (5, format!("GRANT CREATE ON SCHEMA \"public\" TO {role}")),
        (
            6,
            "needs the target, essaim_commits, staging tables".to_owned(),
        ),
    ] {
        let is_found = found
            .iter()
            .any(|(severity, at, what)| severity == "error" && *at == line && what.contains(&part));
        ensure!(is_found, "{part}: {found:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_check_prints_lines_for_people_and_needs_no_cluster() -> Result<()> {
    let cluster = shared().await?;
    let wrong = essaim(&cluster.url(), &["check", "-c", "SELECT 1;\nSELECT nosuch"]).await?;
    assert_eq!(wrong.code, 1);
    ensure!(
        wrong
            .out
            .starts_with("command:1:1: error: a job writes to tables"),
        "{wrong:?}"
    );
    ensure!(wrong.out.contains("\ncommand:2:1: error: "), "{wrong:?}");

    let nowhere = "http://127.0.0.1:1";
    let unreachable = essaim(nowhere, &["check", "-c", "SELECT 1"]).await?;
    assert_eq!(unreachable.code, 3, "{unreachable:?}");
    let missing = essaim(nowhere, &["check", "/nowhere/job.sql"]).await?;
    assert_eq!(missing.code, 2, "{missing:?}");
    let folder = cluster.dir().join(unique("out"));
    let job = format!(
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}/'; INSERT INTO t SELECT 1 AS one;",
        folder.display()
    );
    let local = essaim(nowhere, &["check", "--local", "--strict", "-c", &job]).await?;
    assert_eq!((local.code, local.err.as_str()), (0, ""), "{local:?}");
    ensure!(
        local
            .out
            .ends_with("2 statements, batch job: no errors and no warnings\n"),
        "{local:?}"
    );
    ensure!(!folder.exists(), "a check makes no folder");
    Ok(())
}
