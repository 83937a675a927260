//! What each format makes of the same rows.

use super::*;
use arrow::array::{Float64Array, Int32Builder, Int64Array, ListBuilder, StringArray};
use std::sync::Arc;

fn rows() -> RecordBatch {
    let mut lists = ListBuilder::new(Int32Builder::new());
    lists.append_value([Some(1), None]);
    lists.append_null();
    lists.append_value([]);
    let columns: [(&str, Arc<dyn Array>); 4] = [
        (
            "id",
            Arc::new(Int64Array::from(vec![Some(1), None, Some(300)])),
        ),
        (
            "name",
            Arc::new(StringArray::from(vec![Some("a\"b,c"), None, Some("")])),
        ),
        ("x", Arc::new(Float64Array::from(vec![0.5, -1.0, 2.0]))),
        ("list", Arc::new(lists.finish())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap()
}

fn print(format: Format, batches: &[RecordBatch]) -> String {
    let mut out = Vec::new();
    let mut printer = Printer::new(
        &Style {
            format,
            ..Style::default()
        },
        &batches[0].schema(),
        &mut out,
    )
    .unwrap();
    for batch in batches {
        printer.write(batch).unwrap();
    }
    printer.finish(None).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_table_looks_like_psqls() {
    assert_eq!(
        print(Format::Table, &[rows()]),
        concat!(
            "  id |  name |   x  |    list\n",
            "-----+-------+------+-----------\n",
            "   1 | a\"b,c |  0.5 | [1, NULL]\n",
            "     |       | -1.0 |\n",
            " 300 |       |  2.0 | []\n",
            "(3 rows)\n",
        )
    );
}

#[test]
fn csv_tells_null_from_an_empty_text() {
    assert_eq!(
        print(Format::Csv, &[rows()]),
        "id,name,x,list\n1,\"a\"\"b,c\",0.5,\"[1, NULL]\"\n,,-1.0,\n300,\"\",2.0,[]\n"
    );
}

#[test]
fn json_is_one_array_over_all_batches() {
    let text = print(Format::Json, &[rows(), rows().slice(2, 1)]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        value,
        serde_json::json!([
            {"id": 1, "name": "a\"b,c", "x": 0.5, "list": [1, null]},
            {"id": null, "name": null, "x": -1.0, "list": null},
            {"id": 300, "name": "", "x": 2.0, "list": []},
            {"id": 300, "name": "", "x": 2.0, "list": []},
        ])
    );
    assert_eq!(text.lines().count(), 4);
}

#[test]
fn a_result_without_rows_still_has_its_columns() {
    let empty = rows().slice(0, 0);
    assert_eq!(
        print(Format::Table, std::slice::from_ref(&empty)),
        " id | name | x | list\n----+------+---+------\n(0 rows)\n"
    );
    assert_eq!(
        print(Format::Csv, std::slice::from_ref(&empty)),
        "id,name,x,list\n"
    );
    assert_eq!(print(Format::Json, &[empty]), "[]\n");
}

#[test]
fn later_pages_keep_the_widths_of_the_first() {
    let numbers = |range: std::ops::Range<i64>| {
        let column: Arc<dyn Array> = Arc::new(Int64Array::from_iter_values(range));
        let texts: Arc<dyn Array> = Arc::new(StringArray::from(vec!["x"; column.len()]));
        RecordBatch::try_from_iter([("number", column), ("t", texts)]).unwrap()
    };
    let text = print(Format::Table, &[numbers(0..1500), numbers(0..1500)]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2 + 3000 + 1);
    assert_eq!(lines[0], " number | t");
    assert_eq!(lines[2], "      0 | x");
    assert_eq!(lines[2 + 2999], "   1499 | x");
    assert_eq!(lines[2 + 3000], "(3000 rows)");
}

#[test]
fn a_record_cannot_drive_the_terminal() {
    let evil: Arc<dyn Array> = Arc::new(StringArray::from(vec!["\x1b[2Jgone"]));
    let batch = RecordBatch::try_from_iter([("t", evil)]).unwrap();
    assert!(print(Format::Table, &[batch]).contains("\\x1b[2Jgone"));
}

#[test]
fn null_has_a_word_and_a_row_lines_of_its_own_where_asked_for() {
    let shown = |expanded: bool| {
        let style = Style {
            expanded,
            null: "(null)".to_owned(),
            ..Style::default()
        };
        let mut out = Vec::new();
        let mut printer = Printer::new(&style, &rows().schema(), &mut out).unwrap();
        printer.write(&rows().slice(1, 1)).unwrap();
        printer.finish(None).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        shown(false),
        concat!(
            "   id   |  name  |   x  |  list\n",
            "--------+--------+------+--------\n",
            " (null) | (null) | -1.0 | (null)\n",
            "(1 row)\n",
        )
    );
    assert_eq!(
        shown(true),
        "-[ RECORD 1 ]----\nid   | (null)\nname | (null)\nx    | -1.0\nlist | (null)\n(1 row)\n"
    );
}
