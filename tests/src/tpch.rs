//! TPC-H at scale 0.1 in PostgreSQL, generated once and kept, and its 22 queries.

use crate::postgres::{copy, maintenance, rows, run, url_of};
use anyhow::{Context, Result};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use std::fmt::Display;
use tokio::sync::OnceCell;
use tpchgen::csv::{
    CustomerCsv, LineItemCsv, NationCsv, OrderCsv, PartCsv, PartSuppCsv, RegionCsv, SupplierCsv,
};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};

const DATABASE: &str = "essaim_tpch_01";
const SCALE: f64 = 0.1;

/// The eight tables.
pub const TABLES: [&str; 8] = [
    "region", "nation", "supplier", "customer", "part", "partsupp", "orders", "lineitem",
];

const SCHEMA: &str = include_str!("../tpch/schema.sql");
const INDEXES: &str = include_str!("../tpch/indexes.sql");

/// The URL of the database with the data, which is made if it is not there.
///
/// # Errors
/// The server is not there or refuses.
pub async fn database() -> Result<&'static str> {
    static URL: OnceCell<String> = OnceCell::const_new();
    let url = URL.get_or_try_init(|| async {
        let mut server = maintenance().await?;
        // Two test programs may get here at once; the number is only ours.
        run(&mut server, "SELECT pg_advisory_lock(7230001)").await?;
        let there = format!("SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'");
        if rows(&mut server, &there).await?.is_empty() {
            make(&mut server).await.context("making the TPC-H data")?;
        }
        server.close().await?;
        url_of(DATABASE)
    });
    Ok(url.await?)
}

/// Makes the data under another name and renames it at the end: so it is whole wherever it is there.
async fn make(server: &mut PgConnection) -> Result<()> {
    let loading = format!("{DATABASE}_loading");
    run(
        server,
        &format!("DROP DATABASE IF EXISTS {loading} WITH (FORCE)"),
    )
    .await?;
    // Texts are ordered by their bytes, as in Essaim.
    let create = format!(
        "CREATE DATABASE {loading} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'UTF8'"
    );
    run(server, &create).await?;
    let mut database = PgConnection::connect(&url_of(&loading)?).await?;
    run(&mut database, SCHEMA).await?;

    fn lines<T: Display>(rows: impl Iterator<Item = T>) -> impl Iterator<Item = String> {
        rows.map(|row| row.to_string())
    }
    let db = &mut database;
    let generator = RegionGenerator::new(SCALE, 1, 1);
    copy(db, "region", lines(generator.iter().map(RegionCsv::new))).await?;
    let generator = NationGenerator::new(SCALE, 1, 1);
    copy(db, "nation", lines(generator.iter().map(NationCsv::new))).await?;
    let generator = SupplierGenerator::new(SCALE, 1, 1);
    copy(
        db,
        "supplier",
        lines(generator.iter().map(SupplierCsv::new)),
    )
    .await?;
    let generator = CustomerGenerator::new(SCALE, 1, 1);
    copy(
        db,
        "customer",
        lines(generator.iter().map(CustomerCsv::new)),
    )
    .await?;
    let generator = PartGenerator::new(SCALE, 1, 1);
    copy(db, "part", lines(generator.iter().map(PartCsv::new))).await?;
    let generator = PartSuppGenerator::new(SCALE, 1, 1);
    copy(
        db,
        "partsupp",
        lines(generator.iter().map(PartSuppCsv::new)),
    )
    .await?;
    let generator = OrderGenerator::new(SCALE, 1, 1);
    copy(db, "orders", lines(generator.iter().map(OrderCsv::new))).await?;
    let generator = LineItemGenerator::new(SCALE, 1, 1);
    copy(
        db,
        "lineitem",
        lines(generator.iter().map(LineItemCsv::new)),
    )
    .await?;

    run(db, INDEXES).await?;
    database.close().await?;
    run(
        server,
        &format!("ALTER DATABASE {loading} RENAME TO {DATABASE}"),
    )
    .await
}

/// Statements that declare the eight tables to Essaim.
pub fn declarations(url: &str) -> String {
    TABLES
        .map(|table| {
            format!("CREATE EXTERNAL TABLE {table} STORED AS POSTGRES LOCATION '{url}' OPTIONS (table '{table}');\n")
        })
        .concat()
}

/// The text of query `number`, from 1 to 22, with the specification's validation parameters.
///
/// # Errors
/// There is no such query.
pub fn query(number: usize) -> Result<String> {
    let path = format!("{}/tpch/q{number}.sql", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).with_context(|| path)
}
