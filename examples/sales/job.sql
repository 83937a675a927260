-- Five million rows of text, cleaned and counted by both workers, into two Postgres tables that the job makes.
CREATE EXTERNAL TABLE sales_raw STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}' OPTIONS (table 'sales_raw');

-- Created with the types of the INSERT, and the key as primary key. A second run replaces the rows.
CREATE EXTERNAL TABLE sales_by_month STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'sales_by_month', mode 'overwrite', key 'month,store,category');

CREATE EXTERNAL TABLE sales_by_product STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'sales_by_product', mode 'overwrite', key 'product');

-- Each field by itself: what cannot be read is null.
CREATE VIEW read AS
SELECT
  sale_id,
  -- 31/12/2025 is 2025-12-31; days that are in no calendar are null.
  try_cast(regexp_replace(trim(sold_on), '^(\d{2})/(\d{2})/(\d{4})$', '\3-\2-\1') AS DATE) AS sold_on,
  CASE WHEN lower(trim(store)) NOT IN ('', 'n/a', 'null') THEN initcap(regexp_replace(trim(store), '\s+', ' ', 'g')) END AS store,
  initcap(trim(product)) AS product,
  CASE WHEN category <> 'N/A' THEN initcap(category) ELSE 'Unknown' END AS category,
  CASE WHEN quantity ~ '^[1-9]\d*$' THEN CAST(quantity AS INT) END AS quantity,
  try_cast(replace(regexp_replace(unit_price, '[$ ]|EUR', '', 'g'), ',', '.') AS DECIMAL(10, 2)) AS unit_price,
  -- A discount of more than everything, or of less than nothing, is none.
  CASE WHEN regexp_like(discount, '^\d{1,2}(\.\d)? ?%$') THEN CAST(rtrim(discount, ' %') AS DECIMAL(4, 1)) ELSE 0 END AS discount,
  customer
FROM sales_raw;

CREATE VIEW clean AS
SELECT *, round(unit_price * quantity * (100 - discount) / 100, 2) AS amount
FROM read
WHERE sold_on IS NOT NULL AND store IS NOT NULL AND quantity IS NOT NULL AND unit_price > 0;

INSERT INTO sales_by_month
SELECT
  CAST(date_trunc('month', sold_on) AS DATE) AS month, store, category,
  count(*) AS sales, sum(quantity) AS pieces,
  CAST(sum(amount) AS DECIMAL(20, 2)) AS revenue,
  avg(amount) AS average_sale
FROM clean GROUP BY 1, 2, 3;

INSERT INTO sales_by_product
SELECT
  product, count(*) AS sales, count(DISTINCT customer) AS customers,
  min(unit_price) AS lowest_price, max(unit_price) AS highest_price,
  CAST(sum(amount) AS DECIMAL(20, 2)) AS revenue,
  CAST(100 * sum(CASE WHEN discount > 0 THEN amount END) / sum(amount) AS DECIMAL(5, 2)) AS discounted_percent
FROM clean GROUP BY product;
