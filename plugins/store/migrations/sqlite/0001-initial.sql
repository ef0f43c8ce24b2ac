-- Money in nano-USD, times in milliseconds since 1970.

CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE tenants (
  id TEXT PRIMARY KEY,
  body TEXT NOT NULL, -- JSON of Tenant without id, source and createdAt
  created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE keys (
  id TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  body TEXT NOT NULL, -- JSON of ApiKey without id, tenant and last_used_at
  last_used_at INTEGER
) WITHOUT ROWID;
CREATE INDEX keys_tenant ON keys (tenant, id);

-- One row an inference that has ended. seq grows in the order of folding; attempts hang on it.
CREATE TABLE inferences (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  time INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  key TEXT,
  model TEXT NOT NULL,
  stream INTEGER NOT NULL,
  status TEXT NOT NULL,
  http_status INTEGER,
  error_code TEXT,
  duration REAL,
  first_token REAL,
  cost INTEGER,
  usage_source TEXT NOT NULL,
  input INTEGER NOT NULL,
  cache_read INTEGER NOT NULL,
  cache_write_5m INTEGER NOT NULL,
  cache_write_1h INTEGER NOT NULL,
  audio_input INTEGER NOT NULL,
  output INTEGER NOT NULL,
  reasoning INTEGER NOT NULL,
  audio_output INTEGER NOT NULL,
  trace_id TEXT,
  "user" TEXT,
  tags TEXT, -- JSON
  charges TEXT NOT NULL -- JSON: [[scope, period], …], totals included
);
-- records.ts names the one that it searches by. They end with seq by themselves.
CREATE INDEX inferences_time ON inferences (time);
CREATE INDEX inferences_model ON inferences (model, time);
CREATE INDEX inferences_tenant ON inferences (tenant, time);
CREATE INDEX inferences_tenant_model ON inferences (tenant, model, time);
CREATE INDEX inferences_key ON inferences (key, time) WHERE key IS NOT NULL;
-- What is rare is looked for by itself.
CREATE INDEX inferences_unsettled ON inferences (status, time) WHERE status <> 'settled';
CREATE INDEX inferences_tenant_unsettled ON inferences (tenant, status, time) WHERE status <> 'settled';
CREATE INDEX inferences_tenant_model_unsettled ON inferences (tenant, model, status, time) WHERE status <> 'settled';
CREATE INDEX inferences_key_unsettled ON inferences (key, status, time) WHERE key IS NOT NULL AND status <> 'settled';
-- An interrupted row may still turn out to have been settled.
CREATE INDEX inferences_interrupted ON inferences (id) WHERE status = 'interrupted';

CREATE TABLE attempts (
  inference INTEGER NOT NULL, -- inferences.seq
  number INTEGER NOT NULL,
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  status TEXT NOT NULL,
  error_code TEXT,
  duration REAL,
  first_token REAL,
  cost INTEGER,
  price_version TEXT,
  usage_source TEXT NOT NULL,
  input INTEGER NOT NULL,
  cache_read INTEGER NOT NULL,
  cache_write_5m INTEGER NOT NULL,
  cache_write_1h INTEGER NOT NULL,
  audio_input INTEGER NOT NULL,
  output INTEGER NOT NULL,
  reasoning INTEGER NOT NULL,
  audio_output INTEGER NOT NULL,
  PRIMARY KEY (inference, number)
) WITHOUT ROWID;

-- Calls that run, or whose process died: their journal lines, and whose they are.
CREATE TABLE open_calls (
  id TEXT PRIMARY KEY,
  instance TEXT NOT NULL,
  time INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  lines TEXT NOT NULL -- JSON: an OpenLine and its AttemptLines
) WITHOUT ROWID;
CREATE INDEX open_calls_instance ON open_calls (instance);
CREATE INDEX open_calls_tenant ON open_calls (tenant, time);

CREATE TABLE balances (
  scope TEXT NOT NULL,
  period TEXT NOT NULL,
  spent INTEGER NOT NULL,
  requests INTEGER NOT NULL,
  tokens_in INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL,
  version INTEGER NOT NULL,
  PRIMARY KEY (scope, period)
) WITHOUT ROWID;

-- What changes a balance without a row: resets (kind `adjustment`) and the sums of rows that retention deleted (`retired`).
CREATE TABLE adjustments (
  id INTEGER PRIMARY KEY,
  time INTEGER NOT NULL,
  kind TEXT NOT NULL,
  scope TEXT NOT NULL,
  period TEXT NOT NULL,
  spent INTEGER NOT NULL,
  requests INTEGER NOT NULL,
  tokens_in INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL,
  reason TEXT,
  actor TEXT
);
CREATE INDEX adjustments_scope ON adjustments (scope, period);

-- How far each journal file is folded: written in the transaction of the fold itself.
CREATE TABLE journals (file TEXT PRIMARY KEY, instance TEXT NOT NULL, folded INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE instances (id TEXT PRIMARY KEY, started_at INTEGER NOT NULL, seen_at INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE audits (
  id INTEGER PRIMARY KEY,
  time INTEGER NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  subject TEXT NOT NULL,
  before TEXT, -- JSON
  after TEXT -- JSON
);
CREATE INDEX audits_subject ON audits (subject, id);

CREATE TABLE answers (
  id TEXT PRIMARY KEY,
  fingerprint TEXT NOT NULL,
  stream INTEGER NOT NULL,
  body BLOB NOT NULL,
  expires_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX answers_expiry ON answers (expires_at);
