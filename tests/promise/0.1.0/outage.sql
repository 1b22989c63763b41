BEGIN TRANSACTION;
CREATE TABLE batches (number INTEGER PRIMARY KEY, entry BLOB);
CREATE TABLE buckets (
    key TEXT PRIMARY KEY, state BLOB, expiry INTEGER, handed BLOB, known_at REAL, changed TEXT);
INSERT INTO "buckets" VALUES('outage:{ada}',X'76040000000000005C476239B46106',1796276545014972,NULL,0.0,'{"amount":10,"period_us":86400000000,"name":"outage","on_failure":"local"}');
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL);
INSERT INTO "facts" VALUES('ahead us',1.796140031333444e+15);
CREATE INDEX changed ON buckets (key) WHERE changed IS NOT NULL;
COMMIT;
