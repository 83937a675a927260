use super::*;

/// What is shown of a table's declaration with these options.
fn options_of(list: &str) -> String {
    let shown = redact_sql(&format!("{BEGIN}{list}); SELECT 1"));
    let shown = shown.strip_prefix(BEGIN).unwrap_or(&shown);
    shown
        .strip_suffix("); SELECT 1")
        .unwrap_or(shown)
        .to_owned()
}

const BEGIN: &str = "CREATE EXTERNAL TABLE t STORED AS HTTP LOCATION 'http://h/x' OPTIONS (";

#[test]
fn only_options_that_hold_no_secret_are_shown() {
    let shown = [
        "format 'json', \"Page_Param\" 'p', retries 3, 'format.key' 'a,b'",
        "header.A '', 'header.Authorization' 'Bearer ${ESSAIM_VAR_TOKEN}', 'body' '${ESSAIM_VAR_B}'",
        "has_header true,",
    ];
    for list in shown {
        assert_eq!(options_of(list), list);
    }
    let hidden = [
        (
            "'header.Authorization' 'Bearer abc'",
            "'header.Authorization' '***'",
        ),
        (
            "header.x_api_key abc, format 'json'",
            "header.x_api_key '***', format 'json'",
        ),
        (
            "kafka.ssl.key.pem '-----BEGIN\n''x', mode append",
            "kafka.ssl.key.pem '***', mode append",
        ),
        (
            "'kafka.sasl.password' 'ab''cd\"ef'",
            "'kafka.sasl.password' '***'",
        ),
        (
            "'kafka.sasl.password' 'ab\\'",
            "'kafka.sasl.password' '***'",
        ),
        (
            "E'body' E'a\\'b', unheard_of 1",
            "E'body' '***', unheard_of '***'",
        ),
        ("'body' 'a ${X} b'", "'body' '***'"),
        ("'body' -- 'old'\n 'new'", "'body' -- ***\n '***'"),
        (
            "dead_letter_location 's3://k:s@b/x'",
            "dead_letter_location 's3://k:***@b/x'",
        ),
        ("'Bearer abc' 'header.Authorization'", "'***' '***'"),
        ("table \"a token\"", "table '***'"),
    ];
    for (list, expected) in hidden {
        assert_eq!(options_of(list), expected);
    }
}

#[test]
fn what_is_no_list_of_options_is_not_shown() {
    for list in [
        "'body' = 'abc'",
        "'body' ('abc')",
        "abc",
        "'body' 'abc' 'x' 'abc'",
        "body, 'abc'",
    ] {
        assert_eq!(options_of(list), "***", "{list}");
    }
    assert_eq!(
        redact_sql("COPY t TO 'x' OPTIONS (body 'abc'"),
        "COPY t TO 'x' OPTIONS (***"
    );
}

#[test]
fn places_are_shown_without_their_keys() {
    let places = [
        (
            "http://h/d?q=Paris&appid=k&API%5Fkey=x&keyword=car",
            "http://h/d?q=Paris&appid=***&API%5Fkey=***&keyword=car",
        ),
        (
            "https://ghp_abc@h/x#access_token=y",
            "https://***@h/x#access_token=***",
        ),
        (
            "postgres://app:s3c/r'' et@h/db?sslpassword=x",
            "postgres://app:***@h/db?sslpassword=***",
        ),
        ("postgres:/app:pw@h/db", "***"),
        ("host=h password=''my pw''", "***"),
        (
            "mongodb://a:b@h1,h2/?authMechanismProperties=X:y",
            "mongodb://a:***@h1,h2/?authMechanismProperties=***",
        ),
        ("kafka://h:9092/tokens", "kafka://h:9092/tokens"),
        ("data/toots.json", "data/toots.json"),
    ];
    for (place, expected) in places {
        let sql = |place| {
            format!("CREATE EXTERNAL TABLE t STORED AS X LOCATION '{place}'; COPY t TO '{place}'")
        };
        assert_eq!(redact_sql(&sql(place)), sql(expected));
    }
}

#[test]
fn the_rest_is_shown_as_it_is_written() {
    let sql = "-- Cars, dearest first\nSET essaim.execution = 'tasks';\r\n/* é */ SELECT 'it''s', \"a b\", $$x$$, 1.5e3\n\
               FROM t WHERE name = 'é' AND key > 7 AND at = TIMESTAMP '2026-01-01' -- end";
    assert_eq!(redact_sql(sql), sql);
    assert_eq!(redact_sql(""), "");
}

#[test]
fn comments_and_literals_that_speak_of_secrets_are_not_shown() {
    let texts = [
        ("-- password: abc\nSELECT 1", "-- ***\nSELECT 1"),
        ("SELECT 1 -- OPTIONS (body 'abc')", "SELECT 1 -- ***"),
        ("/* the key is abc */SELECT 1", "/* *** */SELECT 1"),
        (
            "SELECT * FROM t WHERE api_token IN ('abc', 17) AND b = 2",
            "SELECT * FROM t WHERE api_token IN ('***', ***) AND b = 2",
        ),
        ("SELECT '{\"password\": \"abc\"}'", "SELECT '***'"),
        ("SELECT f('http://u:abc@h/x')", "SELECT f('http://***@h/x')"),
    ];
    for (sql, expected) in texts {
        assert_eq!(redact_sql(sql), expected);
    }
}

#[test]
fn a_text_whose_quotes_do_not_match_is_not_shown() {
    let broken = [
        "SELECT 'abc",
        "SELECT 1; /* abc",
        "SELECT \"abc",
        "SELECT $$abc",
        // Here they are even, and what should be outside is inside.
        "CREATE EXTERNAL TABLE t LOCATION 'http://h OPTIONS ('header.x' 'abc'); SELECT 'x",
        "CREATE EXTERNAL TABLE t OPTIONS ('header.x 'abc', 'b' 'c)",
    ];
    for sql in broken {
        assert_eq!(redact_sql(sql), "***", "{sql}");
    }
    assert!(!shown_tokens("SELECT 'abc").contains("abc"));
    assert!(shown_tokens("SELEC 1").contains("SELEC"));
}
