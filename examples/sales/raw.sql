-- Sales as a till would never write them: half of it text, with everything in it that people type.
-- The same rows each time: every value comes from a hash of the row's number. :rows is how many.
CREATE FUNCTION pick(n bigint, what text, choices bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ((hashtextextended(what, n) % choices) + choices) % choices;

CREATE TABLE sales_raw (
  sale_id bigint, sold_on text, store text, product text, category text, quantity text, unit_price text, discount text, customer text
);

INSERT INTO sales_raw
SELECT
  n,
  -- One in 100 has no date, or one that is in no calendar; a third is written the other way round.
  CASE pick(n, 'bad date', 100)
    WHEN 0 THEN (ARRAY[NULL, '', 'N/A', 'yesterday', '2025-02-30', '31/11/2025', '2025-13-01'])[1 + pick(n, 'which bad date', 7)]
    ELSE to_char(day, CASE pick(n, 'date format', 3) WHEN 0 THEN 'DD/MM/YYYY' ELSE 'YYYY-MM-DD' END)
  END,
  -- Any case, with blanks around and within; one in 50 is missing in some way.
  CASE pick(n, 'no store', 50)
    WHEN 0 THEN (ARRAY[NULL, '', '  ', 'N/A', 'n/a', 'null'])[1 + pick(n, 'which no store', 6)]
    ELSE CASE pick(n, 'store case', 4)
      WHEN 0 THEN upper(store) WHEN 1 THEN '  ' || lower(store) || ' ' WHEN 2 THEN replace(store, ' ', '   ') ELSE store END
  END,
  CASE pick(n, 'product case', 3) WHEN 0 THEN lower(product) WHEN 1 THEN product || '  ' ELSE product END,
  CASE pick(n, 'no category', 40) WHEN 0 THEN NULL WHEN 1 THEN 'N/A' ELSE CASE pick(n, 'category case', 2) WHEN 0 THEN upper(category) ELSE category END END,
  CASE pick(n, 'bad quantity', 60)
    WHEN 0 THEN (ARRAY[NULL, '', '0', '-3', 'two', '1.5'])[1 + pick(n, 'which bad quantity', 6)]
    ELSE (1 + pick(n, 'quantity', 9))::text
  END,
  -- 3.50, $3.50, "3,50", 1 234.50 with blanks; one in 50 is negative or no number.
  CASE pick(n, 'bad price', 50)
    WHEN 0 THEN (ARRAY[NULL, '', 'N/A', 'free', '-' || price, '1.2.3'])[1 + pick(n, 'which bad price', 6)]
    ELSE CASE pick(n, 'price format', 5)
      WHEN 0 THEN '$' || price WHEN 1 THEN replace(price::text, '.', ',') WHEN 2 THEN ' ' || price || ' EUR' ELSE price::text END
  END,
  CASE pick(n, 'discount', 4) WHEN 0 THEN (ARRAY['5%', '10 %', '12.5%', '150%', '-5%', 'N/A'])[1 + pick(n, 'which discount', 6)] END,
  CASE pick(n, 'customer', 10) WHEN 0 THEN NULL ELSE 'C' || pick(n, 'customer number', 20000) END
FROM generate_series(1::bigint, :rows) AS n,
  LATERAL (SELECT pick(n, 'product', 60) AS p) AS chosen,
  LATERAL (SELECT
    -- One in eight before Christmas.
    CASE pick(n, 'season', 8) WHEN 0 THEN make_date(2024 + pick(n, 'year', 2)::int, 12, 1 + pick(n, 'day of december', 24)::int)
      ELSE DATE '2024-01-01' + pick(n, 'day', 731)::int END AS day,
    -- The first stores sell the most.
    (ARRAY['Paris', 'New York', 'São Paulo', 'Genève', 'Den Haag', 'Kraków', 'Lisboa', 'Oslo'])[1 + floor(8 * power(pick(n, 'store', 10000) / 10000.0, 1.6))::int] AS store,
    (ARRAY['Chair', 'Table', 'Lamp', 'Shelf', 'Sofa', 'Rug'])[1 + p % 6] || ' ' || chr(65 + (p / 6)::int) AS product,
    (ARRAY['Seating', 'Tables', 'Light', 'Storage', 'Seating', 'Textiles'])[1 + p % 6] AS category,
    ((100 + pick(p, 'list price', 90000) + pick(n, 'price', 500))::numeric / 100)::numeric(10, 2) AS price
  ) AS sale;
ANALYZE sales_raw;
