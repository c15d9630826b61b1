-- What operators were told, once for each `alert_key`: such as a budget, its period and the threshold it passed.
-- `deliveries` says, for each channel, how far it is (JSON); `due_unix_ms` is when the next attempt is due, NULL when none is.
CREATE TABLE alerts (
    org          TEXT NOT NULL,
    alert_key    TEXT NOT NULL,
    at_unix_ms   BIGINT NOT NULL,
    body         TEXT NOT NULL,
    deliveries   TEXT NOT NULL,
    due_unix_ms  BIGINT,
    PRIMARY KEY (org, alert_key)
);
CREATE INDEX alerts_by_time ON alerts (at_unix_ms);
CREATE INDEX alerts_due ON alerts (due_unix_ms);
