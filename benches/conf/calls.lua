-- tools/call by 1,000 users in turn: every request is made before the load begins.
-- By environment: BENCH_BODY and BENCH_TOKENS, files with the body and one bearer token a line.
local requests, turn = {}, 0

function init()
   local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
   local body = file:read("*a")
   file:close()
   for token in io.lines(os.getenv("BENCH_TOKENS")) do
      requests[#requests + 1] = wrk.format("POST", nil, {
         ["Host"] = wrk.headers["Host"],
         ["Content-Type"] = "application/json",
         ["Accept"] = "application/json, text/event-stream",
         ["MCP-Protocol-Version"] = "2025-11-25",
         ["Authorization"] = "Bearer " .. token,
      }, body)
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

-- What load.py reads: requests, microseconds, p50, p99, answers of status 400 and above, broken connections.
function done(summary, latency)
   local errors = summary.errors
   io.write(string.format("RESULT %d %d %d %d %d %d\n", summary.requests, summary.duration,
      latency:percentile(50), latency:percentile(99), errors.status,
      errors.connect + errors.read + errors.write + errors.timeout))
end
