-- For how long replicas of local models ran, and had something to do, by hour and by what a replica cost an hour then.
CREATE TABLE node_hours (
    hour_unix_ms       BIGINT NOT NULL,
    model              TEXT NOT NULL,
    microusd_per_hour  BIGINT NOT NULL,
    replica_ms         BIGINT NOT NULL,
    busy_ms            BIGINT NOT NULL,
    PRIMARY KEY (hour_unix_ms, model, microusd_per_hour)
);
-- How far each meter had counted when it was last read off: several read it, and what was counted must not count twice.
CREATE TABLE node_meters (
    meter       TEXT NOT NULL,
    model       TEXT NOT NULL,
    at_unix_ms  BIGINT NOT NULL,
    replica_ms  BIGINT NOT NULL,
    busy_ms     BIGINT NOT NULL,
    PRIMARY KEY (meter, model)
);
