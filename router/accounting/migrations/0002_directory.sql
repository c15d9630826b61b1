-- Who may do what, and what was done about it.

-- Organisations, teams, keys and policies, as documents: the ledger holds all of them in memory and reads them whole.
-- A key is here by its keyed hash only. Nothing is deleted, so what an old entry of the audit log names can be found.
CREATE TABLE directory (
    kind     TEXT NOT NULL,
    id       TEXT NOT NULL,
    org      TEXT NOT NULL,
    version  BIGINT NOT NULL,  -- rises with every change
    body     TEXT NOT NULL,    -- JSON
    PRIMARY KEY (kind, id)
);

-- Every act of an administrator and every denied request. `hash` is the SHA-256 of the hash before it, a line end and
-- `body`, so whatever is changed, removed or put between later breaks the chain, see router/accounting/audit.py.
CREATE TABLE audit (
    sequence    BIGINT PRIMARY KEY,
    entry_id    TEXT NOT NULL UNIQUE,
    org         TEXT NOT NULL,
    at_unix_ms  BIGINT NOT NULL,
    body        TEXT NOT NULL,
    hash        TEXT NOT NULL
);
CREATE INDEX audit_by_org ON audit (org, sequence);
