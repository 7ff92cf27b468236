// What the suite starts as its client, with the address of its server as the last argument. The case itself plays the
// scenario, because it knows how many may run at once; this tells it, and ends as it went.
const [room, url] = process.argv.slice(2);
const { MCP_CONFORMANCE_SCENARIO: scenario, MCP_CONFORMANCE_CONTEXT: context = '{}' } = process.env;

const reply = await fetch(room, { method: 'POST', body: JSON.stringify({ url, scenario, context: JSON.parse(context) }) });
console.log(await reply.text());
process.exit(reply.ok ? 0 : 1);
