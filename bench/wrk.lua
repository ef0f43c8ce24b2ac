-- wrk -s wrk.lua URL -- BODYFILE [NAME VALUE]...
function init(args)
  local file = io.open(args[1], 'rb')
  wrk.method = 'POST'
  wrk.body = file:read('*a')
  file:close()
  for i = 2, #args, 2 do wrk.headers[args[i]] = args[i + 1] end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"bytes":%d,"microseconds":%d,"status":%d,"broken":%d,"timeouts":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.bytes, summary.duration, errors.status, errors.connect + errors.read + errors.write,
    errors.timeout, latency:percentile(50), latency:percentile(99)
  ))
end
