-- +goose Up

-- The tables that the consumer group statistics writes from the order events, and that `orders statistics rebuild`
-- rebuilds.

CREATE TABLE statistics (
    day               date NOT NULL,
    sku               text NOT NULL,
    currency          text NOT NULL,
    orders            bigint NOT NULL,
    quantity          bigint NOT NULL,
    revenue           numeric(38,2) NOT NULL,
    returned_orders   bigint NOT NULL,
    returned_quantity bigint NOT NULL,
    returned_revenue  numeric(38,2) NOT NULL,
    PRIMARY KEY (day, sku, currency)
);
COMMENT ON TABLE statistics IS 'Paid orders per day and product, and which of them were rejected or cancelled since.';
COMMENT ON COLUMN statistics.day IS 'In UTC, on which the order was paid; of what is returned, too.';

CREATE TABLE statistics_orders (
    order_id uuid PRIMARY KEY,
    paid_on  date NOT NULL,
    returned boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE statistics_orders IS 'The day each order counts for: the event that takes one back does not say when it was paid.';

CREATE TABLE statistics_since (
    since date NOT NULL
);
CREATE UNIQUE INDEX statistics_since_once ON statistics_since ((true));
COMMENT ON TABLE statistics_since IS 'A row when the statistics were rebuilt from a topic that had lost its beginning: the first day of which something is counted.';

-- +goose Down

DROP TABLE statistics_since, statistics_orders, statistics;
