//! Every type, by values that the server itself wrote.

use crate::harness::{Place, query, refused, shown, sql_session};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float32Type, Float64Type};

#[tokio::test]
async fn every_type_has_its_value_in_arrow() {
    let mut place = Place::new().await;
    place
        .run(
            "CREATE TYPE mood AS ENUM ('sad', 'so-so', 'happy');
             CREATE DOMAIN price AS numeric(8,2);
             CREATE TABLE every (
                id int, b bool, i2 int2, i4 int4, i8 int8, o oid, n numeric(12,3), big numeric(50,2), free numeric,
                money price, t text, v varchar(5), c char(4), nm name, raw bytea, d date, tm time, ts timestamp,
                tz timestamptz, iv interval, u uuid, j json, jb jsonb, e mood, dropped int, other inet,
                sum numeric GENERATED ALWAYS AS (n * 2) STORED,
                PRIMARY KEY (id));
             ALTER TABLE every DROP COLUMN dropped;
             INSERT INTO every VALUES
             (1, true, -32768, -2147483648, -9223372036854775808, 4294967295, -123456789.125,
              123456789012345678901234567890123456789012345678.99, -0.000000000000000001, 9.95, 'né ''q''', 'ab', 'x',
              'nm', '\\x00ff', '0044-03-15 BC', '23:59:59.999999', '2024-02-29 12:34:56.789012',
              '2024-02-29 12:34:56+02', '1 year 2 mons 3 days 04:05:06.7', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11',
              '{\"a\": 1}', '{\"b\":2}', 'happy', '10.0.0.1/8'),
             (2, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
              null, null, null, null, null, null, null);"
                .replace("\\\\", "\\")
                .as_str(),
        )
        .await;
    let session = sql_session();
    query(&session, &place.declare("every", "", ""))
        .await
        .unwrap();
    let columns = [
        ("arrow_typeof(b)", "Boolean"),
        ("b", "true"),
        ("i2", "-32768"),
        ("i4", "-2147483648"),
        ("i8", "-9223372036854775808"),
        ("o", "4294967295"),
        ("n", "-123456789.125"),
        ("arrow_typeof(n)", "Decimal128(12, 3)"),
        ("big", "123456789012345678901234567890123456789012345678.99"),
        ("free", "-0.000000000000000001"),
        ("arrow_typeof(free)", "Decimal128(38, 18)"),
        ("money", "9.95"),
        ("arrow_typeof(money)", "Decimal128(8, 2)"),
        ("t", "né 'q'"),
        ("v", "ab"),
        ("c", "x   "),
        ("nm", "nm"),
        ("raw", "00ff"),
        ("d", "-0043-03-15"),
        ("tm", "23:59:59.999999"),
        ("ts", "2024-02-29T12:34:56.789012"),
        ("tz", "2024-02-29T10:34:56Z"),
        ("iv", "14 mons 3 days 4 hours 5 mins 6.700000000 secs"),
        ("u", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("j", "{\"a\": 1}"),
        ("jb", "{\"b\": 2}"),
        ("e", "happy"),
        ("other", "10.0.0.1/8"),
        ("sum", "-246913578.250000000000000000"),
    ];
    for (expression, expected) in columns {
        let text = shown(
            &session,
            &format!("SELECT {expression} AS x FROM every WHERE id = 1"),
        )
        .await;
        let value = text
            .lines()
            .nth(3)
            .unwrap()
            .trim_start_matches("| ")
            .trim_end_matches('|');
        // The table pads with blanks, which a char(n) has too.
        assert_eq!(value.trim_end(), expected.trim_end(), "{expression}");
    }
    let nulls = query(&session, "SELECT * FROM every WHERE id = 2")
        .await
        .unwrap();
    for (field, column) in nulls[0].schema().fields().iter().zip(nulls[0].columns()) {
        assert_eq!(column.is_null(0), field.name() != "id", "{}", field.name());
        assert_eq!(
            field.is_nullable(),
            field.name() != "id",
            "{}",
            field.name()
        );
    }
    let explained = shown(&session, "EXPLAIN SELECT other, u FROM every WHERE i4 > 3").await;
    assert!(
        explained.contains("notes=[other (inet) as text]"),
        "{explained}"
    );
    assert!(!explained.contains("essaim:essaim"), "{explained}");
    place.drop().await;
}

#[tokio::test]
async fn floats_keep_nan_and_infinities() {
    let mut place = Place::new().await;
    place
        .run(
            "CREATE TABLE floats AS SELECT x::float4 AS f4, x::float8 AS f8 \
             FROM unnest(ARRAY['NaN', 'Infinity', '-Infinity', '-0', '0.1', NULL]) AS x",
        )
        .await;
    let session = sql_session();
    query(&session, &place.declare("floats", "", ""))
        .await
        .unwrap();
    let rows = query(&session, "SELECT f4, f8 FROM floats").await.unwrap();
    let f4 = rows[0].column(0).as_primitive::<Float32Type>();
    let f8 = rows[0].column(1).as_primitive::<Float64Type>();
    assert!(f4.value(0).is_nan() && f8.value(0).is_nan());
    assert_eq!((f4.value(1), f8.value(1)), (f32::INFINITY, f64::INFINITY));
    assert_eq!(
        (f4.value(2), f8.value(2)),
        (f32::NEG_INFINITY, f64::NEG_INFINITY)
    );
    assert!(f4.value(3).is_sign_negative() && f8.value(3).is_sign_negative());
    assert_eq!((f4.value(4), f8.value(4)), (0.1, 0.1));
    assert!(f4.is_null(5) && f8.is_null(5));
    place.drop().await;
}

#[tokio::test]
async fn arrays_keep_their_nulls() {
    let mut place = Place::new().await;
    place
        .run(
            "CREATE TABLE arrays (id int, i int[], t text[], n numeric(6,2)[], d date[]);
             INSERT INTO arrays VALUES
             (1, '{1,NULL,3}', '{a,NULL,\"\"}', '{1.50,NULL}', '{2000-01-01,NULL}'),
             (2, '{}', NULL, '{}', '{1970-01-01}'), (3, '{7}', '{x}', NULL, NULL)",
        )
        .await;
    let session = sql_session();
    query(&session, &place.declare("arrays", "", ""))
        .await
        .unwrap();
    let text = shown(&session, "SELECT * FROM arrays ORDER BY id").await;
    assert_eq!(
        text.lines()
            .skip(3)
            .take(3)
            .map(|line| line.replace(' ', ""))
            .collect::<Vec<_>>(),
        [
            "|1|[1,,3]|[a,,]|[1.50,]|[2000-01-01,]|",
            "|2|[]||[]|[1970-01-01]|",
            "|3|[7]|[x]|||"
        ]
    );
    place
        .run("INSERT INTO arrays VALUES (4, '{{1,2},{3,4}}')")
        .await;
    let session = sql_session();
    query(&session, &place.declare("arrays", "", ""))
        .await
        .unwrap();
    let error = refused(&session, "SELECT i FROM arrays").await;
    assert!(
        error.contains("column i: an array of 2 dimensions"),
        "{error}"
    );
    place.drop().await;
}

#[tokio::test]
async fn values_without_a_place_in_arrow_name_their_column_and_a_way_out() {
    let mut place = Place::new().await;
    place
        .run(
            "CREATE TABLE odd AS SELECT 'infinity'::timestamp AS ts, '-infinity'::date AS d, 'NaN'::numeric AS n, \
             123456789012345678901234::numeric AS large",
        )
        .await;
    let session = sql_session();
    query(&session, &place.declare("odd", "", ""))
        .await
        .unwrap();
    for (column, expected) in [
        ("ts", "column ts: the timestamp 'infinity'"),
        ("d", "column d: the date '-infinity'"),
        (
            "n",
            "column n: the numeric NaN is no decimal: declare the column DOUBLE or VARCHAR",
        ),
        (
            "large",
            "column large: the numeric 123456789012345678901234",
        ),
    ] {
        let error = refused(&session, &format!("SELECT {column} FROM odd")).await;
        assert!(error.contains(expected), "{error}");
    }
    let session = sql_session();
    let declared = "(ts VARCHAR, d VARCHAR, n DOUBLE, large DECIMAL(30,2))";
    query(&session, &place.declare("odd", declared, ""))
        .await
        .unwrap();
    let text = shown(&session, "SELECT * FROM odd").await;
    assert_eq!(
        text.lines().nth(3).unwrap().replace(' ', ""),
        "|infinity|-infinity|NaN|123456789012345678901234.00|"
    );
    place.drop().await;
}

#[tokio::test]
async fn a_time_beyond_nanoseconds_names_its_column_and_the_type_that_holds_it() {
    let mut place = Place::new().await;
    place
        .run("CREATE TABLE prices AS SELECT 1 AS k, '9999-12-31'::timestamp AS valid_to")
        .await;
    let session = sql_session();
    query(
        &session,
        &place.declare("prices", "(k INT, valid_to TIMESTAMP)", ""),
    )
    .await
    .unwrap();
    let error = refused(&session, "SELECT k, valid_to FROM prices").await;
    assert!(
        error.contains("column valid_to: a time does not fit")
            && error.contains("declare or CAST it as TIMESTAMP(6)"),
        "{error}"
    );
    let session = sql_session();
    query(
        &session,
        &place.declare("prices", "(k INT, valid_to TIMESTAMP(6))", ""),
    )
    .await
    .unwrap();
    let found = shown(&session, "SELECT k, valid_to FROM prices").await;
    assert!(found.contains("9999-12-31"), "{found}");
    place.drop().await;
}

#[tokio::test]
async fn declared_columns_are_checked_and_cast() {
    let mut place = Place::new().await;
    place
        .run("CREATE TABLE few AS SELECT 7::int4 AS a, 'x'::text AS b, '2024-05-06 07:08:09'::timestamp AS c, 1.5::numeric AS n")
        .await;
    let session = sql_session();
    let declared = "(c TIMESTAMP, a BIGINT, n DECIMAL(5,1))";
    query(&session, &place.declare("few", declared, ""))
        .await
        .unwrap();
    let text = shown(
        &session,
        "SELECT c, a, n, arrow_typeof(c) AS t FROM few WHERE a > 6",
    )
    .await;
    assert!(text.contains("2024-05-06T07:08:09 | 7 | 1.5"), "{text}");
    let session = sql_session();
    let error = refused(&session, &place.declare("few", "(a BIGINT, zz INT)", "")).await;
    assert!(
        error.contains("has no column zz; it has a, b, c, n"),
        "{error}"
    );
    let error = refused(&session, &place.declare("few", "(a BYTEA)", "")).await;
    assert!(error.contains("column a of"), "{error}");
    assert!(
        error.contains("which cannot be read as BYTEA: declare it INT, or"),
        "{error}"
    );
    place.drop().await;
}
