-- The same questions, asked of PostgreSQL itself: it reads every field in its own way, and must come to the same figures.

-- A day that is in the calendar, or null.
CREATE FUNCTION day_of(y int, m int, d int) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN m BETWEEN 1 AND 12 AND d BETWEEN 1 AND
  date_part('day', make_date(y, CASE WHEN m BETWEEN 1 AND 12 THEN m ELSE 1 END, 1) + INTERVAL '1 month' - INTERVAL '1 day')
  THEN make_date(y, m, d) END;

CREATE UNLOGGED TABLE expected_clean AS
SELECT *, round(unit_price * quantity * (1 - discount / 100), 2) AS amount
FROM (
  SELECT
    CASE
      WHEN sold_on LIKE '____-__-__' THEN day_of(left(sold_on, 4)::int, substr(sold_on, 6, 2)::int, right(sold_on, 2)::int)
      WHEN sold_on LIKE '__/__/____' THEN day_of(right(sold_on, 4)::int, substr(sold_on, 4, 2)::int, left(sold_on, 2)::int)
    END AS sold_on,
    CASE lower(replace(store, ' ', ''))
      WHEN 'newyork' THEN 'New York' WHEN 'sãopaulo' THEN 'São Paulo' WHEN 'denhaag' THEN 'Den Haag'
      WHEN '' THEN NULL WHEN 'n/a' THEN NULL WHEN 'null' THEN NULL ELSE initcap(btrim(store))
    END AS store,
    initcap(btrim(product)) AS product,
    coalesce(initcap(nullif(category, 'N/A')), 'Unknown') AS category,
    CASE WHEN length(quantity) = 1 AND quantity BETWEEN '1' AND '9' THEN quantity::int END AS quantity,
    CASE WHEN unit_price ~ '^[ $]?\d+[.,]\d\d( EUR)?$' THEN translate(unit_price, ',$ EUR', '.')::numeric END AS unit_price,
    CASE discount WHEN '5%' THEN 5 WHEN '10 %' THEN 10 WHEN '12.5%' THEN 12.5 ELSE 0 END AS discount,
    customer
  FROM sales_raw
) AS read
WHERE sold_on IS NOT NULL AND store IS NOT NULL AND quantity IS NOT NULL AND unit_price IS NOT NULL;
ANALYZE expected_clean;

CREATE VIEW expected_by_month AS
SELECT
  date_trunc('month', sold_on)::date AS month, store, category, count(*) AS sales, sum(quantity) AS pieces,
  sum(amount) AS revenue, round(avg(amount), 6) AS average_sale
FROM expected_clean GROUP BY 1, 2, 3;

CREATE VIEW expected_by_product AS
SELECT
  product, count(*) AS sales, count(DISTINCT customer) AS customers, min(unit_price) AS lowest_price,
  max(unit_price) AS highest_price, sum(amount) AS revenue,
  round(100 * sum(amount) FILTER (WHERE discount > 0) / sum(amount), 2) AS discounted_percent
FROM expected_clean GROUP BY product;
