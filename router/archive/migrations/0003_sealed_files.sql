-- Whether a file was sealed: what is plain text now was put in its place. Those from before are looked at soon.
ALTER TABLE files ADD COLUMN sealed INTEGER NOT NULL DEFAULT 0;
