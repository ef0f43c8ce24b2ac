-- Money in nano-USD, times in milliseconds since 1970. Texts are compared byte by byte, as SQLite does.

CREATE TABLE settings (name TEXT COLLATE "C" PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE tenants (
  id TEXT COLLATE "C" PRIMARY KEY,
  body TEXT NOT NULL, -- JSON of Tenant without id, source and createdAt
  created_at BIGINT NOT NULL
);

CREATE TABLE keys (
  id TEXT COLLATE "C" PRIMARY KEY,
  tenant TEXT COLLATE "C" NOT NULL,
  body TEXT NOT NULL, -- JSON of ApiKey without id, tenant and last_used_at
  last_used_at BIGINT
);
CREATE INDEX keys_tenant ON keys (tenant, id);

CREATE SEQUENCE inferences_seq;

-- One row an inference that has ended. seq grows in the order of folding; attempts hang on it.
CREATE TABLE inferences (
  seq BIGINT PRIMARY KEY,
  id TEXT COLLATE "C" NOT NULL,
  time BIGINT NOT NULL,
  tenant TEXT COLLATE "C" NOT NULL,
  key TEXT COLLATE "C",
  model TEXT COLLATE "C" NOT NULL,
  stream BIGINT NOT NULL,
  status TEXT COLLATE "C" NOT NULL,
  http_status BIGINT,
  error_code TEXT,
  duration DOUBLE PRECISION,
  first_token DOUBLE PRECISION,
  cost BIGINT,
  usage_source TEXT NOT NULL,
  input BIGINT NOT NULL,
  cache_read BIGINT NOT NULL,
  cache_write_5m BIGINT NOT NULL,
  cache_write_1h BIGINT NOT NULL,
  audio_input BIGINT NOT NULL,
  output BIGINT NOT NULL,
  reasoning BIGINT NOT NULL,
  audio_output BIGINT NOT NULL,
  trace_id TEXT,
  "user" TEXT,
  tags TEXT, -- JSON
  charges TEXT NOT NULL -- JSON: [[scope, period], …], totals included
);
-- records.ts says which one it searches by. An index holds no long text: of a model's name it holds the beginning.
CREATE INDEX inferences_time ON inferences (time, seq);
CREATE INDEX inferences_model ON inferences (left(model, 200), time, seq);
CREATE INDEX inferences_tenant ON inferences (tenant, time, seq);
CREATE INDEX inferences_tenant_model ON inferences (tenant, left(model, 200), time, seq);
CREATE INDEX inferences_key ON inferences (key, time, seq) WHERE key IS NOT NULL;
-- What is rare is looked for by itself.
CREATE INDEX inferences_unsettled ON inferences (status, time, seq) WHERE status <> 'settled';
CREATE INDEX inferences_tenant_unsettled ON inferences (tenant, status, time, seq) WHERE status <> 'settled';
CREATE INDEX inferences_tenant_model_unsettled ON inferences (tenant, left(model, 200), status, time, seq)
  WHERE status <> 'settled';
CREATE INDEX inferences_key_unsettled ON inferences (key, status, time, seq)
  WHERE key IS NOT NULL AND status <> 'settled';
-- An interrupted row may still turn out to have been settled.
CREATE INDEX inferences_interrupted ON inferences (id) WHERE status = 'interrupted';

CREATE TABLE attempts (
  inference BIGINT NOT NULL, -- inferences.seq
  number BIGINT NOT NULL,
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  status TEXT NOT NULL,
  error_code TEXT,
  duration DOUBLE PRECISION,
  first_token DOUBLE PRECISION,
  cost BIGINT,
  price_version TEXT,
  usage_source TEXT NOT NULL,
  input BIGINT NOT NULL,
  cache_read BIGINT NOT NULL,
  cache_write_5m BIGINT NOT NULL,
  cache_write_1h BIGINT NOT NULL,
  audio_input BIGINT NOT NULL,
  output BIGINT NOT NULL,
  reasoning BIGINT NOT NULL,
  audio_output BIGINT NOT NULL,
  PRIMARY KEY (inference, number)
);

-- Calls that run, or whose process died: their journal lines, and whose they are.
CREATE TABLE open_calls (
  id TEXT COLLATE "C" PRIMARY KEY,
  instance TEXT COLLATE "C" NOT NULL,
  time BIGINT NOT NULL,
  tenant TEXT COLLATE "C" NOT NULL,
  lines TEXT NOT NULL -- JSON: an OpenLine and its AttemptLines
);
CREATE INDEX open_calls_instance ON open_calls (instance);
CREATE INDEX open_calls_tenant ON open_calls (tenant, time);

CREATE TABLE balances (
  scope TEXT COLLATE "C" NOT NULL,
  period TEXT COLLATE "C" NOT NULL,
  spent BIGINT NOT NULL,
  requests BIGINT NOT NULL,
  tokens_in BIGINT NOT NULL,
  tokens_out BIGINT NOT NULL,
  version BIGINT NOT NULL,
  PRIMARY KEY (scope, period)
);

-- What changes a balance without a row: resets (kind `adjustment`) and the sums of rows that retention deleted (`retired`).
CREATE TABLE adjustments (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  time BIGINT NOT NULL,
  kind TEXT NOT NULL,
  scope TEXT COLLATE "C" NOT NULL,
  period TEXT COLLATE "C" NOT NULL,
  spent BIGINT NOT NULL,
  requests BIGINT NOT NULL,
  tokens_in BIGINT NOT NULL,
  tokens_out BIGINT NOT NULL,
  reason TEXT,
  actor TEXT
);
CREATE INDEX adjustments_scope ON adjustments (scope, period);

-- How far each journal file is folded: written in the transaction of the fold itself.
CREATE TABLE journals (file TEXT COLLATE "C" PRIMARY KEY, instance TEXT NOT NULL, folded BIGINT NOT NULL);

CREATE TABLE instances (id TEXT COLLATE "C" PRIMARY KEY, started_at BIGINT NOT NULL, seen_at BIGINT NOT NULL);

CREATE TABLE audits (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  time BIGINT NOT NULL,
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  subject TEXT COLLATE "C" NOT NULL,
  before TEXT, -- JSON
  after TEXT -- JSON
);
CREATE INDEX audits_subject ON audits (subject, id);

CREATE TABLE answers (
  id TEXT COLLATE "C" PRIMARY KEY,
  fingerprint TEXT NOT NULL,
  stream BIGINT NOT NULL,
  body BYTEA NOT NULL,
  expires_at BIGINT NOT NULL
);
CREATE INDEX answers_expiry ON answers (expires_at);
