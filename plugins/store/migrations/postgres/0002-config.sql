-- The configuration that a call was routed by: the beginning of its hash; null for calls from before.
ALTER TABLE inferences ADD COLUMN config TEXT COLLATE "C";
