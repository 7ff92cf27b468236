// Calls of revision 2026-07-28 that take several rounds: the answer asks for something, and the client calls again
// with it and with the state that it was given.
import { randomBytes } from 'node:crypto';
import { acceptedContent, createRequestStateCodec, inputRequired, inputResponse } from '@modelcontextprotocol/server';
import { z } from 'zod';
import { say, text } from './content.mjs';

const states = createRequestStateCodec({ key: randomBytes(32) });
/** The option of the server that refuses a state which is not one of ours. */
export const requestState = { verify: states.verify };

const done = value => ({ content: [text(value)] });
const fields = { name: z.string(), ok: z.boolean(), color: z.string(), context: z.string() };
const question = (message, field) => ({ message, requestedSchema: z.object({ [field]: fields[field] }) });
/** What the client's person said to a question, when it is an answer to it. */
const reply = ({ mcpReq }, key, field) =>
  acceptedContent(mcpReq.inputResponses, key, z.object({ [field]: fields[field] }))?.[field];
const given = ({ mcpReq }, key) => inputResponse(mcpReq.inputResponses, key);

const prompt = words => ({ messages: [{ role: 'user', content: text(words) }], maxTokens: 100 });

export function offerRounds(server) {
  const tool = (name, description, run) => server.registerTool(name, { description }, run);
  const rounds = (name, ...rest) => tool(`test_input_required_result_${name}`, ...rest);
  offerOneRound(rounds);
  offerState(rounds);
  tool('test_streaming_elicitation', 'Asks for a name', askName);
  // The SDK refuses to ask for what the client has not declared; the suite calls this one without declaring it.
  tool('test_missing_capability', 'Asks for a completion', askCapital);
  server.registerPrompt('test_input_required_result_prompt', { description: 'Asks for its context' }, context => {
    const about = reply(context, 'user_context', 'context');
    if (about !== undefined) return say(text(`Think of ${about}.`));
    return ask({ user_context: inputRequired.elicit(question('What is it about?', 'context')) });
  });
}

const ask = (inputRequests, state) => inputRequired({ inputRequests, ...(state && { requestState: state }) });

function askName(context) {
  const name = reply(context, 'user_name', 'name');
  return name === undefined
    ? ask({ user_name: inputRequired.elicit(question('Who is there?', 'name')) })
    : done(`Hello, ${name}!`);
}

function askCapital(context) {
  const said = given(context, 'capital_question');
  if (said.kind === 'sampling') return done(said.result.content.text);
  return ask({ capital_question: inputRequired.createMessage(prompt('What is the capital of France?')) });
}

function offerOneRound(tool) {
  tool('elicitation', 'Asks for a name', askName);
  tool('sampling', 'Asks for a completion', askCapital);
  tool('list_roots', 'Asks for the roots', context => {
    const said = given(context, 'client_roots');
    if (said.kind === 'roots') return done(said.roots.map(root => root.uri).join(' '));
    return ask({ client_roots: inputRequired.listRoots() });
  });
  tool('capabilities', 'Asks for what the client can give', context => {
    const declared = context.mcpReq.envelope?.['io.modelcontextprotocol/clientCapabilities'] ?? {};
    return ask({
      ...(declared.sampling && { greeting: inputRequired.createMessage(prompt('Greet me.')) }),
      ...(declared.elicitation && { user_name: inputRequired.elicit(question('Who is there?', 'name')) }),
    });
  });
}

function offerState(tool) {
  const confirmed = async context => {
    const state = context.mcpReq.requestState();
    if (state && reply(context, 'confirm', 'ok') !== undefined) return done('state-ok');
    return ask({ confirm: inputRequired.elicit(question('Go on?', 'ok')) }, await states.mint({ round: 1 }));
  };
  tool('request_state', 'Wants its state back', confirmed);
  tool('tampered_state', 'Wants its state back as it was', confirmed);
  tool('multiple_inputs', 'Asks for three things at once', async context => {
    const name = reply(context, 'user_name', 'name');
    const greeted = given(context, 'greeting');
    const roots = given(context, 'client_roots');
    if (context.mcpReq.requestState() && name && greeted.kind === 'sampling' && roots.kind === 'roots') {
      return done(`${greeted.result.content.text}, ${name}: ${roots.roots.length} roots`);
    }
    const requests = {
      user_name: inputRequired.elicit(question('Who is there?', 'name')),
      greeting: inputRequired.createMessage(prompt('Greet me.')),
      client_roots: inputRequired.listRoots(),
    };
    return ask(requests, await states.mint({ round: 1 }));
  });
  tool('multi_round', 'Asks twice, one after the other', async context => {
    const state = context.mcpReq.requestState();
    const name = state?.name ?? reply(context, 'step1', 'name');
    if (name === undefined) {
      return ask({ step1: inputRequired.elicit(question('Who is there?', 'name')) }, await states.mint({ round: 1 }));
    }
    const color = state?.name && reply(context, 'step2', 'color');
    if (color) return done(`${name} likes ${color}`);
    const next = await states.mint({ round: 2, name });
    return ask({ step2: inputRequired.elicit(question('Which color?', 'color')) }, next);
  });
}
