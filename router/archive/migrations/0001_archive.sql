-- What callers leave here for later. Written by one process. Times are Unix seconds, sizes bytes, JSON is TEXT.

-- Responses that may be fetched, gone on from and deleted. `input` has the items of that turn only.
CREATE TABLE responses (
    org                   TEXT NOT NULL,
    response_id           TEXT NOT NULL,
    previous_response_id  TEXT,
    created_at_unix_s     DOUBLE PRECISION NOT NULL,
    size_bytes            BIGINT NOT NULL,
    body                  TEXT NOT NULL,
    input                 TEXT NOT NULL,
    PRIMARY KEY (org, response_id)
);
CREATE INDEX responses_by_age ON responses (created_at_unix_s);
CREATE INDEX responses_by_org_and_age ON responses (org, created_at_unix_s);

-- Files; the bytes of each are in a file of its name beside the database.
CREATE TABLE files (
    org                TEXT NOT NULL,
    file_id            TEXT NOT NULL,
    created_at_unix_s  BIGINT NOT NULL,
    filename           TEXT NOT NULL,
    purpose            TEXT NOT NULL,
    size_bytes         BIGINT NOT NULL,
    PRIMARY KEY (org, file_id)
);

-- Batches, those that are over too. `body` is what the caller sees, `principal` who is charged (JSON).
CREATE TABLE batches (
    org                TEXT NOT NULL,
    batch_id           TEXT NOT NULL,
    created_at_unix_s  BIGINT NOT NULL,
    status             TEXT NOT NULL,
    body               TEXT NOT NULL,
    principal          TEXT NOT NULL,
    PRIMARY KEY (org, batch_id)
);
CREATE INDEX batches_by_status ON batches (status, created_at_unix_s);
