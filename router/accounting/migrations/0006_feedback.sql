-- What callers say about answers: one word of each key on each request, the last one counts.
CREATE TABLE feedback (
    org              TEXT NOT NULL,
    request_id       TEXT NOT NULL,
    key_id           TEXT NOT NULL,
    given_at_unix_ms BIGINT NOT NULL,
    model            TEXT NOT NULL,
    task             TEXT NOT NULL,
    cached_from      TEXT NOT NULL,
    score            DOUBLE PRECISION NOT NULL,
    label            TEXT NOT NULL,
    tags             TEXT NOT NULL,
    comment          TEXT NOT NULL,
    PRIMARY KEY (org, request_id, key_id)
);
