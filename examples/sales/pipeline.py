"""Sales: five million dirty rows in Postgres, cleaned and counted by a master and two workers into two new tables."""

from lib.example import keep, main
from plots import draw

ROWS, ROWS_SHORT = 5_000_000, 200_000


def make_rows(run):
    """Fills sales_raw."""
    rows = ROWS_SHORT if run.short else ROWS
    run.postgres.execute((run.folder / "raw.sql").read_text().replace(":rows", str(rows)))
    return rows


def check(run):
    """Compares both tables with what PostgreSQL makes of the same rows, to the last digit, and looks at how they were made."""
    run.postgres.execute((run.folder / "check.sql").read_text())
    for table in ("month", "product"):
        columns = f"SELECT * FROM {{}} ORDER BY 1, 2, 3"
        found = run.postgres.query(columns.format(f"sales_by_{table}"))
        run.check(f"sales_by_{table}, {len(found)} rows", found, run.postgres.query(columns.format(f"expected_by_{table}")))
    types = """
        SELECT a.attname, format_type(a.atttypid, a.atttypmod), coalesce(a.attnum = ANY (i.indkey), false)
        FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
        WHERE a.attrelid = %s::regclass AND a.attnum > 0 ORDER BY a.attnum"""
    by_month = [
        ("month", "date", True),
        ("store", "text", True),
        ("category", "text", True),
        ("sales", "bigint", False),
        ("pieces", "bigint", False),
        ("revenue", "numeric(20,2)", False),
        ("average_sale", "numeric(38,6)", False),
    ]
    run.check("types and key of sales_by_month", run.postgres.query(types, ["sales_by_month"]), by_month)


def pipeline(run):
    run.services()
    rows = make_rows(run)
    run.say(f"{rows:,} rows in sales_raw")
    with run.cluster() as cluster:
        cluster.submit(run.folder / "job.sql", name="sales")
        # A worker dies in the middle: its tasks run again on the other one.
        cluster.wait_for_state("sales", "running")
        cluster.crash_worker()
        run.say("killed a worker while it ran")
        # Then the master: the job runs anew when it is back.
        cluster.crash_master()
        run.say("killed the master while it ran")
        cluster.wait("sales")
        run.say("the job is done")
        check(run)
        draw(run.postgres, run.plots)
        keep(run, cluster)
    clean = run.postgres.query("SELECT sum(sales) FROM sales_by_month")[0][0]
    return f"{rows:,} rows, {clean:,} of them clean"


if __name__ == "__main__":
    main("sales", pipeline)
