-- Sums of `requests` by one dimension at a time (`''`: of all), by hour or day: rows that any number of requests
-- share. `ttft` and `total` are histograms of how long they took, see router/accounting/latencies.py. What requests there
-- are already is added when the ledger next opens the database.
CREATE TABLE usage_by (
    dimension              TEXT NOT NULL,
    step                   TEXT NOT NULL CHECK (step IN ('hour', 'day')),
    org                    TEXT NOT NULL,
    at_unix_ms             BIGINT NOT NULL,
    value                  TEXT NOT NULL,
    requests               BIGINT NOT NULL,
    errors                 BIGINT NOT NULL,
    hits                   BIGINT NOT NULL,
    input_tokens           BIGINT NOT NULL,
    output_tokens          BIGINT NOT NULL,
    cached_input_tokens    BIGINT NOT NULL,
    cache_write_5m_tokens  BIGINT NOT NULL,
    cache_write_1h_tokens  BIGINT NOT NULL,
    reasoning_tokens       BIGINT NOT NULL,
    cost_microusd          BIGINT NOT NULL,
    saved_microusd         BIGINT NOT NULL,
    ttft                   BYTEA NOT NULL,
    total                  BYTEA NOT NULL,
    PRIMARY KEY (dimension, step, org, at_unix_ms, value)
);
