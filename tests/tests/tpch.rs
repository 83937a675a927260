//! The 22 queries of TPC-H through Essaim on two workers, against PostgreSQL's own answers over the same tables.

use anyhow::Result;
use essaim_tests::sql::{Order, compare};
use essaim_tests::{cluster, postgres, tpch};
use sqlx::{Connection, PgConnection};

async fn agrees(number: usize, order: Order) -> Result<()> {
    let url = tpch::database().await?;
    let query = tpch::query(number)?;

    let mut server = PgConnection::connect(url).await?;
    let expected = postgres::rows(&mut server, &query).await?;
    server.close().await?;

    let client = cluster::shared().await?.client().await?;
    let sql = format!("{}{query}", tpch::declarations(url));
    compare(&client.query(&sql).await?, &expected, order)
}

macro_rules! queries {
    ($($name:ident = $number:literal, $order:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            agrees($number, Order::$order).await
        }
    )*};
}

// The ORDER BY of 3, 5, 10, 11 and 18 is by sums or prices, which two rows may share.
queries! {
    q01_pricing_summary = 1, Total;
    q02_minimum_cost_supplier = 2, Total;
    q03_shipping_priority = 3, Any;
    q04_order_priority_checking = 4, Total;
    q05_local_supplier_volume = 5, Any;
    q06_forecasting_revenue_change = 6, Total;
    q07_volume_shipping = 7, Total;
    q08_national_market_share = 8, Total;
    q09_product_type_profit = 9, Total;
    q10_returned_items = 10, Any;
    q11_important_stock = 11, Any;
    q12_shipping_modes = 12, Total;
    q13_customer_distribution = 13, Total;
    q14_promotion_effect = 14, Total;
    q15_top_supplier = 15, Total;
    q16_parts_supplier_relationship = 16, Total;
    q17_small_quantity_orders = 17, Total;
    q18_large_volume_customers = 18, Any;
    q19_discounted_revenue = 19, Total;
    q20_potential_part_promotion = 20, Total;
    q21_suppliers_who_kept_orders_waiting = 21, Total;
    q22_global_sales_opportunity = 22, Total;
}
